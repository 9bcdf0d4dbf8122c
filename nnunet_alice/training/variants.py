"""Trainers that differ by a few settings, made when nnU-Net asks for them by name instead of a class each."""

import difflib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_alice.errors import UnknownTrainerError
from nnunet_alice.training.settings import changed, has_setting

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """One ending of trainers' names.

    Attributes:
        shown: how help and pages write it, e.g. ``_<N>epochs``.
        pattern: what it looks like, without the underscore; its group is the value's text.
        path: the setting that it changes, a dotted path; trainers without it do not have the ending.
        value: makes the setting of the text.
        help: what it changes.
        min_value: smallest number allowed, None if it is no number.
    """

    shown: str
    pattern: str
    path: str
    value: Callable[[str], Any]
    help: str
    min_value: float | None = None


_NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"
#: so alike are a name and its misspelling; FineTuneTrainer and DrasCLRFineTuneTrainer are less so
_LOOKS_ALIKE = 0.85
#: smaller than any rate or temperature that makes sense
_ABOVE_0 = 1e-30

LEARNING_RATE = Ending(
    "_lr<X>", rf"lr({_NUMBER})", "optimisation.learning_rate", float, "peak learning rate, e.g. _lr3e-3", _ABOVE_0
)
#: All endings; help and docs/reference/trainers.md are made from this table.
ENDINGS = (
    Ending("_<N>epochs", r"(\d+)epochs?", "run.epochs", int, "epochs of the run", 1),
    Ending("_<N>iterations", r"(\d+)iterations?", "run.iterations", int, "training iterations an epoch", 1),
    Ending("_probe<N>", r"probe(\d+)", "run.probe_every", int, "epochs between two online probes (plan --probe)", 1),
    Ending("_restart<N>", r"restart(\d+)", "run.restart", int, "schedules begin again at epoch N (made by extend)", 1),
    LEARNING_RATE,
    Ending("_seed<N>", r"seed(\d+)", "run.seed", int, "seed of the run", 0),
    Ending("_<N>experts", r"(\d+)experts", "method.num_experts", int, "DrasCLR: experts of each convolution", 1),
    Ending("_<K>neighbours", r"(\d+)neighbours?", "method.neighbours", int, "DrasCLR: landmarks around, 0 for none", 0),
    Ending(
        "_temperature<X>", rf"temperature({_NUMBER})", "method.temperature", float, "DrasCLR: of both losses", _ABOVE_0
    ),
    Ending("_queue<N>", r"queue(\d+)", "method.queue_limit", int, "DrasCLR: most keys that are kept", 1),
    Ending(
        "_keep<P>-<P>",
        r"keep(\d+(?:-\d+)*)",
        "validation.keep_at",
        lambda text: tuple(map(int, text.split("-"))),
        "FineTuneTrainer: checkpoints kept at these per cent of the run",
    ),
    Ending("_noTTA", "(noTTA)", "validation.mirroring", lambda _: False, "FineTuneTrainer: validate without mirroring"),
    Ending(
        "_noMirroring",
        "(noMirroring)",
        "task.mirrored",
        lambda _: False,
        "FineTuneTrainer: no mirroring in training and prediction, as nnUNetTrainerNoMirroring",
    ),
    Ending(
        "_weightedClasses",
        "(weightedClasses)",
        "task.weighted_classes",
        lambda _: True,
        "FineTuneTrainer: rare classes weigh more in the cross-entropy",
    ),
    Ending(
        "_headFirst",
        "(headFirst)",
        "optimisation.decoder_first_share",
        lambda _: 0.1,
        "classification, regression: the head alone first",
    ),
    Ending(
        "_probeFirst",
        "(probeFirst)",
        "target.probe_first",
        lambda _: True,
        "classification, regression: the head starts as a linear probe",
    ),
    Ending("_<N>stages", r"(\d+)stages?", "target.stages", int, "classification, regression: last stages pooled", 1),
    Ending(
        "_layerDecay",
        "(layerDecay)",
        "optimisation.encoder_decay",
        lambda _: 0.75,
        "lower learning rates towards the input",
    ),
    Ending(
        "_freezeEncoder", "(freezeEncoder)", "optimisation.freeze_encoder", lambda _: True, "the encoder stays as it is"
    ),
    Ending(
        "_target<NAME>",
        r"target([A-Za-z0-9]+)",
        "target.target_name",
        str,
        "classification, regression: one of several targets",
    ),
    Ending("_mirror", "(mirror)", "target.mirror", lambda _: True, "classification, regression: mirror crops"),
    Ending(
        "_<N>pictures", r"(\d+)pictures?", "target.pictures", int, "classification, regression: occlusion pictures", 0
    ),
    Ending(
        "_acrossModalities",
        "(acrossModalities)",
        "method.across_modalities",
        lambda _: True,
        "Alice: pair views of different modalities, too",
    ),
    Ending("_AdamW", "(AdamW)", "optimisation.optimizer_name", str, "FineTuneTrainer: AdamW instead of SGD"),
)


def endings_table() -> list[tuple[str, str]]:
    """Return how each ending is written and what it does."""
    return [(ending.shown, ending.help) for ending in ENDINGS]


def trainer_names(namespace: dict[str, Any]) -> Callable[[str], type]:
    """Return ``__getattr__`` for a module of trainers: it makes the trainers that end as :data:`ENDINGS` say.

    nnU-Net finds trainers by ``hasattr(module, name)``. In a module of trainers write
    ``__getattr__ = trainer_names(globals())``.

    Args:
        namespace: the module's globals.
    """

    def __getattr__(name: str) -> type:
        return named_trainer(name, namespace)

    return __getattr__


def named_trainer(name: str, namespace: Mapping[str, Any]) -> type:
    """Return a trainer of a module with the settings that its name ends with, in any order and each once.

    Args:
        name: e.g. ``AliceTrainer_noCASA_30epochs_seed2``. A class of the namespace is read no further.
        namespace: the module's globals.

    Raises:
        UnknownTrainerError: an ending of one of the module's trainers is unknown, or its value makes no sense.
        AttributeError: the name is of no trainer of the module.
    """
    base_name = _base_name(name, namespace)
    if base_name is None:
        _hint_at(name, namespace)
        raise AttributeError(f"module '{namespace['__name__']}' has no attribute '{name}'")
    base = namespace[base_name]
    try:
        changes = _changes(name, base_name, namespace)
    except UnknownTrainerError as error:
        logger.warning("%s", error)  # whoever looks by hasattr hears of it, too
        raise
    summary = f"{base_name} with {', '.join(f'{path} {value}' for path, value in changes.items())}."
    own = {"settings": changed(base.settings, changes), "__module__": base.__module__, "__doc__": summary}
    return type(name, (base,), own)


def with_learning_rate(name: str, value: float) -> str:
    """Return the name of a trainer with a different learning rate.

    Args:
        name: of the trainer, endings included.
        value: the peak learning rate.
    """
    kept = [ending for ending in name.split("_") if not re.fullmatch(LEARNING_RATE.pattern, ending)]
    return f"{'_'.join(kept)}_lr{value:.3g}"


def _hint_at(name: str, namespace: Mapping[str, Any]) -> None:
    """Say which trainer of this module was meant, perhaps: nnU-Net itself says only that it found none."""
    own = {key.lower(): key for key in namespace if _is_own_trainer(key, namespace)}
    near = difflib.get_close_matches(name.partition("_")[0].lower(), own, n=1, cutoff=_LOOKS_ALIKE)
    if near:
        logger.warning(
            "%s is no trainer of nnunet_alice; did you mean %s? nnunet_alice trainers --list names all.",
            name, own[near[0]],
        )  # fmt: skip


def _base_name(name: str, namespace: Mapping[str, Any]) -> str | None:
    """Return the longest name of a trainer of this module with which a name begins."""
    parts = name.split("_")
    for count in range(len(parts) - 1, 0, -1):
        if _is_own_trainer("_".join(parts[:count]), namespace):
            return "_".join(parts[:count])
    return None


def _is_own_trainer(name: str, namespace: Mapping[str, Any]) -> bool:
    found = namespace.get(name)
    return isinstance(found, type) and found.__module__ == namespace["__name__"] and hasattr(found, "settings")


def _changes(name: str, base_name: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    settings = namespace[base_name].settings
    known = [ending for ending in ENDINGS if has_setting(settings, ending.path)]
    changes: dict[str, Any] = {}
    for text in name[len(base_name) + 1 :].split("_"):
        found = [(ending, match[1]) for ending in known if (match := re.fullmatch(ending.pattern, text))]
        if not found:
            classes = (key[len(base_name) :] for key in namespace if key.startswith(f"{base_name}_"))
            raise UnknownTrainerError(
                f"{base_name} has no ending '_{text}'; "
                f"{_nearest(text, [*classes, *(ending.shown for ending in known)])}"
            ).about(value=text)
        ending, number = found[0]
        value = ending.value(number)
        if ending.path in changes:
            raise UnknownTrainerError(f"{name} has two endings {ending.shown}; leave one out.").about(value=name)
        if ending.min_value is not None and value < ending.min_value:
            raise UnknownTrainerError(f"{name} ends with '_{text}', which is too small; give a larger number.").about(
                value=text
            )
        changes[ending.path] = value
    return changes


def _nearest(text: str, known: Iterable[str]) -> str:
    """Return the known endings that look most like a text; all of them where none does."""
    by_form = {re.sub(r"<[A-Z]>|_", "", shown).lower(): shown for shown in known}
    form = re.sub(_NUMBER, "", text).lower()
    near = difflib.get_close_matches(form, by_form, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(by_form[key] for key in near)}?"
    return f"it has {', '.join(by_form.values())}."
