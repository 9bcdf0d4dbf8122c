"""Write a pretraining checkpoint as a folder that others can use: weights, plans, card, checksums."""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_alice.checkpoints.inspection import describe_checkpoint
from nnunet_alice.checkpoints.loading import finite_weights, load_checkpoint
from nnunet_alice.checkpoints.weights_folder import CARD, FILES, write_sums, write_weights_folder
from nnunet_alice.errors import InputError, MissingFileError, OccupiedError
from nnunet_alice.files import read_json, refusals_told, whole_folder, write_json
from nnunet_alice.publishing.card import CardText, card
from nnunet_alice.publishing.contents import contents

#: entries of nnU-Net's fingerprint; ours may name cases beside them
_FINGERPRINT = (
    *("spacings", "shapes_after_crop", "foreground_intensity_properties_per_channel"),
    "median_relative_size_after_cropping",
)


@dataclass(frozen=True)
class Published:
    """What was written.

    Attributes:
        folder: the published folder.
        checksum: SHA-256 of its list of checksums, by which ``fetch`` knows it.
        files: names of its files.
        left_out: one line for each kind of thing that is not in it.
        dataset: name of the training dataset, which is in it.
    """

    folder: Path
    checksum: str
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    dataset: str


def publish(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    text: CardText,
    *,
    licence_file: str | os.PathLike | None = None,
    report: str | os.PathLike | None = None,
    atlas: bool = False,
    case_names: bool = False,
) -> Published:
    """Write a folder that ``fetch``, ``transfer``, ``inspect``, ``features`` and the trainers take.

    The folder is whole or absent. No names of cases, no paths and no image of a patient are in it unless asked for.

    Args:
        checkpoint: of a pretraining trainer of this package. ``progress.png`` beside it and the dataset's fingerprint
            in the folder above come along, where they are.
        output: folder to write; an earlier publication there is replaced.
        text: what only the publisher can say.
        licence_file: text of the licence, kept as ``LICENSE``.
        report: folder of a benchmark's report, for the table of the card.
        atlas: publish DrasCLR's atlas, too; see ``publishing.contents.contents``.
        case_names: publish the names of the training cases.

    Raises:
        CheckpointError: the checkpoint is unreadable, none of pretraining, or holds NaN.
        InputError: licence, report or output are not usable.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    _check_licence(text, licence_file)
    _check_free(output)
    loaded = load_checkpoint(checkpoint)
    kept, left_out = contents(loaded, checkpoint, atlas=atlas, case_names=case_names)
    finite_weights(loaded, checkpoint)
    run = kept["pretraining"]
    companions = _companions(checkpoint, licence_file, report)
    with refusals_told(output), whole_folder(output) as folder:
        write_weights_folder(kept, folder)
        write_json(folder / "plans.json", run["plans"])
        write_json(folder / "dataset.json", {k: v for k, v in run["dataset_json"].items() if k != "dataset"})
        if case_names:
            names = sorted(run["dataset_json"].get("dataset", {}))
            (folder / "training_cases.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        if (fingerprint := checkpoint.parent.parent / "dataset_fingerprint.json").is_file():
            known = read_json(fingerprint)
            write_json(folder / fingerprint.name, {key: known[key] for key in _FINGERPRINT if key in known})
        for name, source in companions.items():
            shutil.copyfile(source, folder / name)
        checksum = write_sums(folder)
        files = tuple(name for name in FILES if name == CARD or (folder / name).is_file())
        evaluation = None if report is None else pd.read_csv(Path(report, "summary.csv"))
        described = describe_checkpoint(folder)
        (folder / CARD).write_text(card(text, described, run, checksum, left_out, files, evaluation), encoding="utf-8")
    return Published(output, checksum, files, tuple(left_out), run["dataset_name"])


def _check_licence(text: CardText, licence_file: Any) -> None:
    """Refuse a licence that the hub has no identifier for, and ``other`` without a text."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", text.licence):
        raise InputError(f"Licence '{text.licence}' is no identifier like apache-2.0, cc-by-nc-4.0 or other.").about(
            value=text.licence
        )
    if text.licence == "other" and licence_file is None:
        raise InputError("Licence 'other' needs its text: --licence_file FILE.").about(option="--licence_file")


def _check_free(output: Path) -> None:
    """Refuse to replace anything but an earlier publication, and the folder that the user is in."""
    if (here := output.resolve()) == Path.cwd():
        raise InputError(f"{here} would be replaced while you are in it; name a folder in it with -o.").about(
            path=here, option="-o"
        )
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; name a folder with -o.").about(path=output, option="-o")
    strange: Sequence[str] = sorted(path.name for path in output.glob("*") if path.name not in FILES)
    if strange:
        raise OccupiedError(
            f"{output} holds {strange[0]}, which publish did not write; name a different folder with -o."
        ).about(path=output, option="-o", value=strange[0])


def _companions(checkpoint: Path, licence_file: Any, report: Any) -> dict[str, Path]:
    """Return the file of the publication -> file that it is a copy of."""
    found = {}
    if (curves := checkpoint.parent / "progress.png").is_file():
        found["progress.png"] = curves
    if report is not None:
        summary = Path(report) / "summary.csv"
        if not summary.is_file():
            raise MissingFileError(f"{summary} does not exist; give the folder that nnunet_alice report wrote.").about(
                path=summary, command="nnunet_alice report"
            )
        found["evaluation.csv"] = summary
        if (curve := Path(report) / "label_efficiency.png").is_file():
            found["evaluation.png"] = curve
    if licence_file is not None:
        if not Path(licence_file).is_file():
            raise MissingFileError(
                f"{licence_file} does not exist; give the text of the licence with --licence_file."
            ).about(path=licence_file, option="--licence_file")
        found["LICENSE"] = Path(licence_file)
    return found
