"""Give a labelled dataset the plans of a fetched model, where the model's own dataset is not."""

from dataclasses import dataclass
from pathlib import Path

from nnunet_alice.anatomy.orientation import reader_that_gives
from nnunet_alice.checkpoints.loading import load_checkpoint
from nnunet_alice.checkpoints.pretraining import pretrained_configuration, pretrained_orientation
from nnunet_alice.checkpoints.weights_folder import SUMS
from nnunet_alice.dataset import MODALITIES
from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json, sha256_of, write_json
from nnunet_alice.nnunet_folders import channel_names, dataset_name, nnunet_folder
from nnunet_alice.planning.modalities import modality_of_channel, plans_of_modality
from nnunet_alice.planning.moved_plans import reader_of, rename_plans
from nnunet_alice.planning.orientations import unlike_pretraining
from nnunet_alice.words import pasteable

#: fewest patches a step in fine-tuning, as in nnU-Net; plans of ours count pairs of views
MIN_BATCH = 2


@dataclass(frozen=True)
class GivenPlans:
    """Plans that a dataset was given.

    Attributes:
        dataset: its full name.
        plans_name: of the plans.
        file: where the plans lie.
        note: what a user has to know about how the dataset's images lie; empty if nothing.
    """

    dataset: str
    plans_name: str
    file: Path
    note: str


def give_plans(folder: Path, dataset: int | str, configuration: str) -> GivenPlans:
    """Write the plans of a published model for a dataset, as nnU-Net moves plans between datasets.

    Their name holds the first digits of the model's checksum: the same model always gives the same name, and no other
    plans are replaced. Where nnU-Net turned the images that the model was trained on, it turns those of the dataset.

    Args:
        folder: from ``fetch``.
        dataset: number or name; it lies in ``nnUNet_raw``.
        configuration: the one that was pretrained.

    Raises:
        InputError: the dataset is unknown or has a different number of channels.
    """
    name = dataset_name(dataset)
    raw = nnunet_folder("nnUNet_raw") / name / "dataset.json"
    dataset_json, plans = read_json(raw), read_json(folder / "plans.json")
    resolved = pretrained_configuration({"plans": plans, "configuration": configuration})
    wanted = len(resolved["normalization_schemes"])
    channels = channel_names(dataset_json)
    if len(channels) != wanted:
        raise InputError(
            f"{name} has {len(channels)} channels and the model {wanted}; plan {name} with nnU-Net and fit the weights "
            f"to its plans with {pasteable('nnunet_alice', 'transfer', '-i', folder)} ..."
        ).about(value=len(channels), command="nnunet_alice transfer")
    if MODALITIES in plans:
        plans = plans_of_modality(plans, modality_of_channel(plans, channels[0]))
    plans["dataset_name"] = name
    rename_plans(plans, f"fetched_{sha256_of(folder / SUMS)[:8]}")
    trained = pretrained_orientation(load_checkpoint(folder))
    plans["image_reader_writer"] = reader_that_gives(trained, reader_of(name, dataset_json))
    plans["configurations"][configuration]["batch_size"] = max(MIN_BATCH, resolved["batch_size"])
    file = nnunet_folder("nnUNet_preprocessed") / name / f"{plans['plans_name']}.json"
    write_json(file, plans)
    note = unlike_pretraining(trained, name, plans["image_reader_writer"])
    return GivenPlans(name, plans["plans_name"], file, note)
