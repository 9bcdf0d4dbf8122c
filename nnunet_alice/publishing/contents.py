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
#: entries that nnU-Net's planning, torch or an author wrote: a case's name in there is a word that it happens to share
_SHARED = ("plans", "dataset_json", "nnssl_adaptation_plan", "network_weights", "model_state", "citations")
#: an address of the web, which is no path
_WEB = re.compile(r"""https?://[^\s"'<>|,;]+""")
#: where a path begins: at the root of a disk, a home folder or the folder at hand; not in a fraction such as a/b
_PATH = re.compile(
    r"(?<!\w)[A-Za-z]:[\\/]|\\\\|(?<![\w./)\]<])/+[^\s/)-]|(?<!\w)~(?:[A-Za-z][\w.-]*)?[\\/]|(?<![\w.])\.\.?[\\/]"
)
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
    """Takes paths and names of cases out of nested values.

    Nobody can tell where a path with blanks ends, so a string that holds one goes as a whole. Of a name only the word
    goes, and an entry whose key holds a path or a name goes with its key.

    Args:
        cases: names that may not stay.

    Attributes:
        removed: number of strings that were replaced and entries that were dropped.
    """

    def __init__(self, cases: Iterable[str]) -> None:
        self._cases = sorted(cases, key=len, reverse=True)  # p1-2 before p1
        self.removed = 0

    def clean(self, value: Any, shared: bool = False) -> Any:
        """Return a copy without them; of what is ``shared`` only paths are taken out."""
        if isinstance(value, str):
            return self._string(value, shared)
        if isinstance(value, Mapping):
            kept = {key: entry for key, entry in value.items() if key == self.clean(key, shared)}
            return {key: self.clean(entry, shared or key in _SHARED) for key, entry in kept.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.clean(entry, shared) for entry in value)
        return value

    def _string(self, text: str, shared: bool) -> str:
        cleaned = text
        if _PATH.search(_WEB.sub("", text)):
            cleaned = REMOVED
        elif not shared:
            for case in self._cases:
                if case in cleaned:  # of 20,000 names few are; 1 is no part of 0.1.0
                    name = rf"(?<!\w)(?<!\d\.){re.escape(case)}(?:_\d{{4}})?(?!\w|\.\d)"
                    cleaned = re.sub(name, REMOVED, cleaned)
        self.removed += cleaned != text
        return cleaned
