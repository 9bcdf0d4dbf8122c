"""The command locate, on a folder of new images."""

import pytest
import SimpleITK as sitk
from support.located import TO_ATLAS, bright_ball, make_atlas, write

from nnunet_alice.anatomy.registration import Registration
from nnunet_alice.cli.main import main
from nnunet_alice.coordinates.atlas_file import PortableAtlas


def test_it_writes_images_with_coordinates_and_says_what_comes_next(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(PortableAtlas, "register", lambda atlas, case: Registration(TO_ATLAS, 0.9, 0.9))
    make_atlas().save(tmp_path / "atlas.npz")
    write(tmp_path / "images" / "a_0000.nii.gz", bright_ball())
    words = ["locate", "-i", tmp_path / "images", "-o", tmp_path / "out", "--atlas", tmp_path / "atlas.npz", "-np", 1]
    assert main(list(map(str, words))) == 0
    printed = capsys.readouterr().out
    assert "1 case located, 0 could not be registered" in printed and "Next:\n  nnUNetv2_predict -i" in printed
    channels = [sitk.ReadImage(str(tmp_path / "out" / f"a_000{number}.nii.gz")) for number in range(5)]
    assert len({image.GetSize() for image in channels}) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-i", ".", "--atlas", "atlas.npz"], "name the folder to write with -o"),
        (["-i", ".", "-o", "elsewhere"], "the atlas of the training with --atlas"),
        (["-i", ".", "-o", "elsewhere", "--atlas", "atlas.npz"], "atlas.npz does not exist"),
    ],
)
def test_what_is_missing_is_one_sentence(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["locate", *words]) == 1
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
