"""Several modalities in one dataset: which case is which, and how each is normalised.

nnU-Net's plans hold one normalisation a channel. Here the plans of the pool name one for each modality; preprocessing
normalises every case by its own. Beside them lie plain plans for each modality, which nnU-Net takes to a labelled
dataset of that modality.
"""

import copy
import os
import re
from collections import Counter
from pathlib import Path

from nnunet_alice.anatomy.subjects import case_table
from nnunet_alice.dataset import MODALITIES, MODALITIES_FILE, SELF_CONTAINED
from nnunet_alice.errors import InputError, named
from nnunet_alice.files import read_json, write_json
from nnunet_alice.importing.report import REPORT_FILE
from nnunet_alice.nnunet_folders import nnunet_folder
from nnunet_alice.planning.moved_plans import rename_plans
from nnunet_alice.planning.preprocessing import raw_cases
from nnunet_alice.planning.window import Window

#: in place of a table: the first folder below the imported one says it
FOLDERS = "folders"
STATISTICS = "foreground_intensity_properties_per_channel"
SCHEME = "normalization_scheme"
_SCHEMES = "normalization_schemes"
Z_SCORE = "ZScoreNormalization"


def scheme_of(modality: str) -> str:
    """Return nnU-Net's normalisation of a channel of this name: a window for CT, z-scores for all unknown names."""
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    return get_normalization_scheme(modality).__name__


def set_modalities(dataset: str, source: str | os.PathLike) -> dict[str, str]:
    """Keep which case is of which modality, for all plans of a dataset.

    Args:
        dataset: full name of a raw dataset with one channel.
        source: CSV with the columns ``case`` and ``modality``, or ``folders``: the first folder below the imported one.

    Returns:
        case -> modality.

    Raises:
        InputError: cases without a modality, names that are none, fewer than two modalities, or several channels.
    """
    cases = raw_cases(dataset)
    channels = read_json(nnunet_folder("nnUNet_raw") / dataset / "dataset.json")["channel_names"]
    if len(channels) != 1:
        raise InputError(
            f"{dataset} has {len(channels)} channels; modalities are told apart where each case has one."
        ).about(value=len(channels))
    found = _by_folder(dataset) if str(source) == FOLDERS else case_table(Path(source), "modality")
    modalities = {case: found[case] for case in cases if case in found}
    check_modalities(modalities, list(cases), str(source))
    write_json(nnunet_folder("nnUNet_preprocessed") / dataset / MODALITIES_FILE, modalities)
    return modalities


def check_modalities(modalities: dict[str, str], cases: list[str], source: str) -> None:
    """Make sure that every case has a modality, and that there are several.

    Raises:
        InputError: so it is not.
    """
    missing = [case for case in cases if case not in modalities]
    if missing:
        raise InputError(f"{source} names no modality of {named(missing)}; name one for every case.").about(
            case=missing[0], path=source
        )
    bad = sorted(name for name in set(modalities.values()) if not re.fullmatch(r"[A-Za-z0-9]+", name))
    if bad:
        raise InputError(
            f"'{bad[0]}' in {source} is no name of a modality; use letters and digits, e.g. CT or T1."
        ).about(path=source, value=bad[0])
    if len(set(modalities.values())) < 2:
        raise InputError(f"{source} names one modality only; leave --modalities out and import with --channel.").about(
            path=source, option="--modalities"
        )


def modalities_of(dataset: str) -> dict[str, str]:
    """Return case -> modality, as :func:`set_modalities` kept it; empty where nobody named them."""
    path = nnunet_folder("nnUNet_preprocessed") / dataset / MODALITIES_FILE
    return read_json(path) if path.is_file() else {}


def add_modalities(
    dataset: str, plans_name: str, window: Window | None = None, keep: dict | None = None
) -> dict[str, str]:
    """Write into plans how each modality is normalised, and plain plans for each modality beside them.

    Args:
        dataset: full name of the dataset; its fingerprint knows the modalities.
        plans_name: identifier of its plans, which are written again.
        window: for CT, in place of the fingerprint's percentiles.
        keep: scheme and statistics (as in the plans) of a target, for the modality that is normalised by this scheme.

    Returns:
        modality -> identifier of its plain plans.

    Raises:
        InputError: there is a window and no CT.
    """
    base = nnunet_folder("nnUNet_preprocessed") / dataset
    plans, fingerprint = read_json(base / f"{plans_name}.json"), read_json(base / "dataset_fingerprint.json")
    known: dict[str, dict] = {}
    plans[MODALITIES] = known
    for modality, statistics in fingerprint[MODALITIES].items():
        scheme = scheme_of(modality)
        known[modality] = {SCHEME: scheme}
        if scheme not in SELF_CONTAINED:
            ours = statistics if keep is None or keep[SCHEME] != scheme else keep[STATISTICS]
            known[modality][STATISTICS] = {"0": ours["0"] | ({} if window is None else window.statistics)}
    if window is not None and not any(STATISTICS in own for own in known.values()):
        raise InputError(f"No modality of {dataset} is CT, so there is no window to set; plan without --window.").about(
            option="--window", value=dataset
        )
    names: dict[str, str] = {}
    for modality in known:
        plain = plans_of_modality(plans, modality)
        rename_plans(plain, f"{plans_name}_{modality}")
        write_json(base / f"{plain['plans_name']}.json", plain)
        names[modality] = plain["plans_name"]
    _normalise_by(plans, Z_SCORE)  # for readers that know of one normalisation only
    write_json(base / f"{plans_name}.json", plans)
    return names


def plans_of_modality(plans: dict, modality: str) -> dict:
    """Return the plans of a pool as plain plans of nnU-Net for one of its modalities; the name stays."""
    plain = copy.deepcopy(plans)
    own = plain.pop(MODALITIES)[modality]
    plain[STATISTICS] |= own.get(STATISTICS, {})
    _normalise_by(plain, own[SCHEME])
    return plain


def modality_of_channel(plans: dict, channel: str) -> str:
    """Return the modality of a pool's plans that a channel of this name is: so named, or normalised alike.

    Raises:
        InputError: the pool has none.
    """
    known = plans[MODALITIES]
    named_so = [modality for modality in known if modality.casefold() == channel.casefold()]
    alike = [modality for modality, own in known.items() if own[SCHEME] == scheme_of(channel)]
    if not named_so + alike:
        raise InputError(f"The model saw {', '.join(known)}, and nothing that is normalised as '{channel}' is.").about(
            value=channel
        )
    return (named_so + alike)[0]


def keep_of_target(target: str, plans_name: str, configuration: str) -> dict:
    """Return the scheme and statistics of a target's plans, as :func:`add_modalities` takes them."""
    plans = read_json(nnunet_folder("nnUNet_preprocessed") / target / f"{plans_name}.json")
    return {SCHEME: plans["configurations"][configuration][_SCHEMES][0], STATISTICS: plans[STATISTICS]}


def sizes(modalities: dict[str, str]) -> str:
    """Return how many cases each modality has, in words: ``30 CT, 20 T1``."""
    return ", ".join(f"{count} {modality}" for modality, count in sorted(Counter(modalities.values()).items()))


def _normalise_by(plans: dict, scheme: str) -> None:
    """Set the normalisation of all configurations of plans, in place."""
    for configuration in plans["configurations"].values():
        if _SCHEMES in configuration:
            configuration[_SCHEMES], configuration["use_mask_for_norm"] = [scheme], [False]


def _by_folder(dataset: str) -> dict[str, str]:
    """Return case -> the first folder below the one that was imported."""
    path = nnunet_folder("nnUNet_raw") / dataset / REPORT_FILE
    if not path.is_file():
        raise InputError(
            f"{dataset} was not imported by nnunet_alice; name modalities by a table case,modality."
        ).about(value=dataset)
    report = read_json(path)
    source, found = Path(report["source"]), {}
    for case, record in report["cases"].items():
        file = Path(record["files"][0]["path"])
        if source in file.parents and len(file.relative_to(source).parts) > 1:
            found[case] = file.relative_to(source).parts[0]
    return found
