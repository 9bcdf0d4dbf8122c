"""The slice of a case that is shown with its segmentations."""

import numpy as np

from nnunet_alice.pictures.benchmark import axial_example


def test_what_is_not_scored_neither_chooses_the_slice_nor_is_shown():
    truth = np.zeros((3, 4, 4), dtype=np.uint8)
    truth[0] = 2
    truth[1, :2, :2], truth[1, 3] = 1, 2
    shown = {"truth": truth, "run": np.ones_like(truth)}
    example = axial_example("case", np.arange(48.0).reshape(3, 4, 4), shown, (2.0, 1.0, 1.0), ignore_label=2)
    assert example.image[0, 0] == 16
    assert np.array_equal(example.segmentations["truth"], np.where(truth[1] == 1, 1, 0))
    assert np.array_equal(example.segmentations["run"], np.where(truth[1] == 2, 0, 1))
    assert axial_example("case", truth, shown, (2.0, 1.0, 1.0)).segmentations["truth"].min() == 2
