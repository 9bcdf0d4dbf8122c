"""The command features: dense maps of raw images, and one sentence for what cannot work."""

import numpy as np
import pytest
import SimpleITK as sitk
from support.small_datasets import set_folders

from nnunet_alice.cli.main import main
from nnunet_alice.features.encoders import open_encoder


@pytest.fixture
def images(tmp_path, monkeypatch):
    set_folders(monkeypatch, tmp_path)
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(18, 20, 16)).astype(np.float32))
    image.SetSpacing((1.5, 1.0, 2.0))
    (tmp_path / "images").mkdir()
    sitk.WriteImage(image, str(tmp_path / "images" / "x_0000.nii.gz"))
    return tmp_path / "images"


def features(*words) -> int:
    return main(["features", *map(str, words)])


def test_dense_maps_lie_where_the_images_lie(checkpoint, images, tmp_path, capsys):
    words = ("-i", images, "--checkpoint", checkpoint, "--level", "dense")
    assert features(*words, "-o", tmp_path / "maps") == 0
    assert "Alice, plain encoder" in capsys.readouterr().out
    found = sitk.ReadImage(str(tmp_path / "maps" / "x.nii.gz"))
    stride = open_encoder(checkpoint, needs_landmarks=False).strides[-1]
    assert found.GetSize()[::-1] == tuple(-(-n // s) for n, s in zip((18, 20, 16), stride, strict=True))
    assert np.isfinite(sitk.GetArrayFromImage(found)).all() and sitk.GetArrayFromImage(found).std() > 0


def test_what_cannot_work_is_one_sentence(checkpoint, images, tmp_path, capsys):
    for words, said in (
        (("-o", tmp_path / "f.csv"), "-o must end in .npz for --level case"),
        (("-o", checkpoint, "--level", "dense"), "is a file; for --level dense name a folder"),
        (("-o", tmp_path / "f.npz"), "has no plans nnUNetPlans.json"),  # of the pretraining, with the landmarks
    ):
        assert features("-i", images, "--checkpoint", checkpoint, *words) == 1
        message = capsys.readouterr().err
        assert said in message and message.count("\n") == 1
