"""A few labelled cases for the online probe: preprocessed by the pool's plans, a crop of each kept beside the pool."""

import logging
import shutil
from dataclasses import dataclass

import numpy as np

from nnunet_alice.anatomy.orientation import ORIENTATION, reader_that_gives
from nnunet_alice.cropping import crop_centred
from nnunet_alice.dataset import MODALITIES, PROBE_FILE, PROBE_IGNORED, PreprocessedDataset, preprocessing_recipe
from nnunet_alice.errors import InputError
from nnunet_alice.files import atomic_write, read_json, write_json
from nnunet_alice.nnunet_folders import channel_names, nnunet_folder
from nnunet_alice.planning.modalities import modality_of_channel, plans_of_modality
from nnunet_alice.planning.moved_plans import reader_of
from nnunet_alice.planning.preprocessing import raw_cases
from nnunet_alice.words import telling

logger = logging.getLogger(__name__)

#: labelled cases at most, and those of them that are predicted; the others are fitted
CASES, TESTED = 8, 3


@dataclass(frozen=True)
class PreparedProbe:
    """Outcome of :func:`prepare_probe`.

    Attributes:
        dataset: the labelled one, full name.
        fitted: cases that the linear layer is fitted to.
        tested: cases whose Dice is reported.
    """

    dataset: str
    fitted: list[str]
    tested: list[str]


def prepare_probe(dataset: PreprocessedDataset, labelled: str) -> PreparedProbe:
    """Choose cases of a labelled dataset, and keep a crop of the plans' patch of each, in the middle of its labels.

    Args:
        dataset: the pool; its plans are there.
        labelled: full name of a labelled raw dataset with the pool's channels.

    Raises:
        InputError: the channels are others, or fewer than two cases can be read.
    """
    cases = raw_cases(labelled)
    content = read_json(nnunet_folder("nnUNet_raw") / labelled / "dataset.json")
    plans = _plans_for(dataset, labelled, content)
    folder = dataset.probe_folder
    if folder.is_dir():
        shutil.rmtree(folder)
    kept: list[str] = []
    order = np.random.default_rng(0).permutation(sorted(cases)).tolist()
    for case in order:
        try:
            image, label = _crop(dataset, plans, content, cases[case])
        except Exception as error:  # readers raise whatever they like; the next case takes its place
            logger.warning("Case %s of %s takes no part in the probe: %s.", case, labelled, telling(error))
            continue
        with atomic_write(folder / f"{case}.npz") as temporary:
            np.savez_compressed(temporary, image=image, label=label)
        kept.append(case)
        if len(kept) == CASES:
            break
    if len(kept) < 2:
        raise InputError(f"Fewer than two cases of {labelled} can be read; name another dataset with --probe.").about(
            option="--probe", value=labelled
        )
    tested = kept[: min(TESTED, len(kept) // 2)]
    prepared = PreparedProbe(labelled, sorted(set(kept) - set(tested)), sorted(tested))
    recipe = preprocessing_recipe(dataset.plans, dataset.configuration_manager.configuration)
    record = {"dataset": labelled, "fitted": prepared.fitted, "tested": prepared.tested, "recipe": recipe}
    write_json(folder / PROBE_FILE, record)
    return prepared


def _plans_for(dataset: PreprocessedDataset, labelled: str, content: dict) -> dict:
    """Return the pool's plans for the images of a labelled dataset, as a published model's are given to one."""
    plans = dict(dataset.plans)
    channels = channel_names(content)
    wanted = len(dataset.configuration_manager.normalization_schemes)
    if len(channels) != wanted:
        raise InputError(
            f"{labelled} has {len(channels)} channels and the pool {wanted}; name another with --probe."
        ).about(option="--probe", value=labelled)
    if MODALITIES in plans:
        plans = plans_of_modality(plans, modality_of_channel(plans, channels[0]))
    plans["image_reader_writer"] = reader_that_gives(plans.get(ORIENTATION, ""), reader_of(labelled, content))
    return plans


def _crop(dataset: PreprocessedDataset, plans: dict, content: dict, files: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return the image (C, *patch) float32 and labels (*patch) uint8 of a case; its label has to show a class."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    configuration = manager.get_configuration(dataset.configuration)
    preprocessor = configuration.preprocessor_class(verbose=False)
    image, label, _ = preprocessor.run_case(files["images"], files["label"], manager, configuration, content)
    ignored = label == content["labels"].get("ignore", np.nan)
    places = np.argwhere((label[0] > 0) & ~ignored[0])
    if not len(places):
        raise InputError("its label is empty")
    centre = places.mean(axis=0)
    shown = crop_centred(np.where(ignored, PROBE_IGNORED, np.maximum(label, 0)), centre, dataset.patch_size)[0]
    return crop_centred(image, centre, dataset.patch_size), shown.astype(np.uint8)
