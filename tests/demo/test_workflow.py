"""What the demo reads of the logs and evaluations of its runs."""

import pytest
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from support.own_data import dataset

from nnunet_alice.demo.own_data import read_own_data
from nnunet_alice.demo.workflow import dice_by_class, pseudo_dice


@pytest.mark.parametrize(
    ("row", "mean"),
    [
        ("np.float32(0.5), np.float32(0.1)", 0.3),
        ("np.float32(0.5), np.float32(1e-04)", 0.25005),  # as numpy writes the smallest that nnU-Net logs
        ("np.float32(0.5), np.float32(nan)", 0.5),
        ("0.5, 0.1", 0.3),  # numpy 1
    ],
)
def test_pseudo_dice_is_the_mean_of_all_classes_that_are_there(row, mean):
    log = f"12:00: Pseudo dice [{row}] \n12:01: Epoch time: 9.5 s\n12:02: Pseudo dice [np.float32(1.0)] \n"
    assert pseudo_dice(log) == pytest.approx([mean, 1])


@pytest.mark.parametrize(
    ("labels", "regions"),
    [
        ({"background": 0, "liver": 1, "spleen": 2}, False),
        ({"background": 0, "liver": [1], "spleen": [2]}, False),  # lists of one value are labels to nnU-Net
        ({"background": 0, "liver": [1, 2], "spleen": [2]}, True),
        ({"background": 0, "liver": [1, 2], "spleen": 2, "ignore": 3}, True),
    ],
)
def test_dice_is_named_as_the_labels_are_however_nnunet_keys_them(tmp_path, labels, regions):
    manager = LabelManager(labels, [1, 2] if regions else None)
    keys = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    summary = {"mean": {label_or_region_to_key(key): {"Dice": 0.1 * n} for n, key in enumerate(keys)}}
    assert dice_by_class(summary, labels) == {"liver": 0, "spleen": 0.1}
    folder = dataset(tmp_path, labels=labels, regions_class_order=[1, 2])
    assert read_own_data(folder, labelled=1, test=1, seed=0).has_regions is regions is manager.has_regions
