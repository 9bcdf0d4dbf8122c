"""What the demo reads of the logs of its runs."""

import pytest

from nnunet_alice.demo.workflow import pseudo_dice


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
