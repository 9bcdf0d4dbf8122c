"""Which steps a demo takes, and what it reads of the logs and evaluations of its runs."""

import pytest
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from support.own_data import dataset
from support.refused import refused

from nnunet_alice.demo.budget import TRAINERS, own_budget
from nnunet_alice.demo.own_data import read_own_data
from nnunet_alice.demo.workflow import Demo, dice_by_class, pseudo_dice
from nnunet_alice.errors import AliceError
from nnunet_alice.trainers import alice


def steps_until(failing, tmp_path, trainer):
    """Run a demo whose commands do nothing but for one that fails; return the demo, to be run, and what was run."""
    data = read_own_data(dataset(tmp_path / "Dataset001_Mine"), labelled=2, test=None, seed=0)
    demo, steps = Demo(tmp_path / "demo", data, own_budget(1, 1, 0, "cpu", trainer=trainer), lambda step: None), []

    def run(name, command, results, whole):
        steps.append(name)
        if name == failing:
            raise AliceError("It failed; see log.txt.").about(path="log.txt")

    demo.commands.run = run
    return demo, steps


@pytest.mark.parametrize("trainer", TRAINERS)
def test_anatomy_is_looked_for_where_the_trainer_uses_it(tmp_path, trainer):
    demo, steps = steps_until("pretrain, no labels", tmp_path, trainer)
    with refused(AliceError, path="log.txt"):
        demo.run()
    assert ("find the anatomy" in steps) is getattr(alice, trainer).settings.method.paired is demo.budget.needs_anatomy


def test_images_without_common_anatomy_get_advice_that_the_demo_takes(tmp_path):
    demo, steps = steps_until("find the anatomy", tmp_path, "AliceTrainer")
    with refused(AliceError, path="log.txt", option="-tr", value="MIMTrainer") as caught:
        demo.run()
    assert "--atlas" not in str(caught.value) and steps[-1] == "find the anatomy"


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
