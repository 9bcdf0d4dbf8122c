"""What may leave: paths and names are found wherever they stand, methods keep what using them needs."""

import pytest
import torch

from nnunet_alice.publishing.contents import REMOVED, contents


def checkpoint(**more):
    run = {"dataset_json": {"dataset": {"p1": {}, "CT": {}}, "channel_names": {"0": "CT"}}, "plans": {}}
    return {"network_weights": {}, "pretraining": run, **more}


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("/data/smith.nii.gz", REMOVED),
        ("~/scans", REMOVED),
        (r"C:\scans\smith", REMOVED),
        (r"\\server\scans", REMOVED),
        ("from /data/x, then (/data/y)", f"from {REMOVED}, then ({REMOVED})"),
        ("p1", REMOVED),
        ("https://doi.org/10.1/2", "https://doi.org/10.1/2"),
        ("1/2 or a/b", "1/2 or a/b"),
        ("torch.nn.Conv3d", "torch.nn.Conv3d"),
        ("p10", "p10"),
    ],
)
def test_paths_and_names_of_cases_are_taken_out(text, cleaned):
    kept, left = contents(checkpoint(citations=[{"where": (text,)}]), "c.pth")
    assert kept["citations"] == [{"where": (cleaned,)}]
    assert any("1 paths" in line for line in left) == (text != cleaned)


def test_a_case_that_is_called_like_a_channel_does_not_break_the_plans():
    kept, _ = contents(checkpoint(), "c.pth")
    assert kept["pretraining"]["dataset_json"] == {"channel_names": {"0": "CT"}}


@pytest.fixture
def drasclr():
    own = {"settings": {"conditional": True}, "atlas": {"case": "p1", "image": torch.ones(2)}, "crop_size": (1, 2, 3)}
    state = {"query.encoder.a": torch.ones(1), "key.encoder.a": torch.ones(1), "queue": torch.ones(9)}
    return checkpoint(drasclr=own, model_state=state)


def test_an_atlas_is_an_image_of_somebody_and_stays_here(drasclr):
    kept, left = contents(drasclr, "c.pth")
    assert "drasclr" not in kept and "model_state" not in kept
    assert any("image of one person" in line for line in left)


def test_an_atlas_that_was_asked_for_goes_with_its_encoder(drasclr):
    kept, _ = contents(drasclr, "c.pth", atlas=True)
    assert set(kept["model_state"]) == {"query.encoder.a"} and kept["drasclr"]["crop_size"] == (1, 2, 3)
    assert kept["drasclr"]["atlas"]["case"] == "atlas" and drasclr["drasclr"]["atlas"]["case"] == "p1"


def test_an_embedding_keeps_its_heads():
    state = {"heads.fine.weight": torch.ones(1), "other": torch.ones(1)}
    kept, _ = contents(checkpoint(embedding={"dimension": 4}, model_state=state), "c.pth")
    assert set(kept["model_state"]) == {"heads.fine.weight"} and kept["embedding"] == {"dimension": 4}
