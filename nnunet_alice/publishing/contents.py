"""What of a checkpoint may travel: weights and settings, no names of cases, no paths, no image of a patient."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nnunet_alice.errors import CheckpointError

#: entries of a checkpoint that are kept as they are
_KEPT = ("network_weights", "nnssl_adaptation_plan", "citations", "trainer_name")
#: part of ``model_state`` that goes with a method's own entry
_STATE = {"drasclr": "query.encoder.", "embedding": "heads."}
#: entries of a ``dataset.json`` that say how images are read, and nothing of the images
_DATASET = (
    *("channel_names", "modality", "labels", "regions_class_order", "numTraining", "file_ending"),
    "overwrite_image_reader_writer",
)
#: entries that nnU-Net's planning wrote: a case's name in there is a word that it happens to share
_PLANNED = ("plans", "dataset_json", "nnssl_adaptation_plan")
#: a path from the root of a disk or from a home folder; no address of the web, no fraction
_PATH = re.compile(r"""(?<![^\s"'(=\[,])(?:[A-Za-z]:[\\/]|\\\\|/|~/)[^\s"'),\]]+""")
REMOVED = "(left out)"


def contents(
    checkpoint: Mapping[str, Any], origin: Any, *, atlas: bool = False, case_names: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Return what of a pretraining checkpoint is published, and what is left out.

    Args:
        checkpoint: from ``load_checkpoint``.
        origin: its file, for the message.
        atlas: keep DrasCLR's atlas, a coarse image of one person, and the encoder that needs it.
        case_names: keep the names of the training cases.

    Returns:
        the checkpoint to publish, and one line for each kind of thing that is not in it.

    Raises:
        CheckpointError: no pretraining trainer of this package wrote the checkpoint.
    """
    if "pretraining" not in checkpoint:
        raise CheckpointError(
            f"{origin} was not written by a pretraining trainer of nnunet_alice; "
            "for a fine-tuned model use nnunet_alice export, for other weights say where you have them from."
        ).about(path=origin, command="nnunet_alice export")
    kept = {name: checkpoint[name] for name in _KEPT if name in checkpoint}
    run = dict(checkpoint["pretraining"])
    cases = sorted(run["dataset_json"].get("dataset", {}))
    run["dataset_json"] = {name: run["dataset_json"][name] for name in _DATASET if name in run["dataset_json"]}
    if case_names and cases:
        run["dataset_json"]["dataset"] = {case: {"images": [], "label": ""} for case in cases}
    if run.get("views"):
        run["views"] = {name: run["views"].get(name) for name in ("matching", "number")}
    kept["pretraining"] = run
    left = [] if case_names else [f"names and files of the {len(cases) or 'training'} cases"]
    if case_names:
        left = [f"files of the {len(cases)} cases"]
    for name, prefix in _STATE.items():
        if name not in checkpoint:
            continue
        if name == "drasclr" and not atlas:
            left.append("DrasCLR's atlas (a coarse image of one person), and the location-conditioned encoder with it")
            continue
        kept[name] = checkpoint[name]
        state = checkpoint["model_state"]
        kept["model_state"] = {key: value for key, value in state.items() if key.startswith(prefix)}
    if "drasclr" in kept:
        kept["drasclr"] = {**kept["drasclr"], "atlas": {**kept["drasclr"]["atlas"], "case": "atlas"}}
    training = [name for name in checkpoint if name not in kept or name == "model_state"]
    left.append(f"the state of training ({', '.join(training)})")
    cleaner = _Cleaner(() if case_names else cases)
    kept = cleaner.clean(kept)
    if cleaner.removed:
        left.append(f"{cleaner.removed} paths or names of cases in the settings")
    return kept, left


class _Cleaner:
    """Takes paths, and strings that are a case's name, out of nested values.

    Args:
        cases: names that may not stay.

    Attributes:
        removed: number of strings that were replaced.
    """

    def __init__(self, cases: Iterable[str]) -> None:
        self._cases = frozenset(cases)
        self.removed = 0

    def clean(self, value: Any, planned: bool = False) -> Any:
        """Return a copy without them; of what was ``planned`` only paths are taken out."""
        if isinstance(value, str):
            return self._string(value, planned)
        if isinstance(value, Mapping):
            return {key: self.clean(entry, planned or key in _PLANNED) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.clean(entry, planned) for entry in value)
        return value

    def _string(self, text: str, planned: bool) -> str:
        cleaned = REMOVED if text in self._cases and not planned else _PATH.sub(REMOVED, text)
        self.removed += cleaned != text
        return cleaned
