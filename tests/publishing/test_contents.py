"""What may leave: paths and names are found wherever they stand, methods keep what using them needs."""

import pytest
import torch

from nnunet_alice.publishing.contents import REMOVED, contents


def checkpoint(note=None, **more):
    cases = {"p1": {}, "CT": {}, "case_7": {}, "weight": {}, "1": {}}
    run = {"dataset_json": {"dataset": cases, "channel_names": {"0": "CT"}}, "plans": {}, "note": note}
    return {"network_weights": {"weight": torch.ones(1)}, "pretraining": run, **more}


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("/data/smith.nii.gz", REMOVED),
        ("~/scans", REMOVED),
        (r"C:\scans\smith", REMOVED),
        (r"\\server\scans", REMOVED),
        ("from /data/x, then (/data/y)", REMOVED),
        ("/Users/Jane Doe/scans/mim.pth", REMOVED),
        (r"C:\Users\Jane Doe\data", REMOVED),
        ("file:///home/jane/mim.pth", REMOVED),
        ("teacher:/home/jane/w.pth", REMOVED),
        ("https://doi.org/10.1/2|/home/jane/x", REMOVED),
        ("~jane/x", REMOVED),
        ("../jane/x", REMOVED),
        ("p1", REMOVED),
        ("lungs of case_7, p1 and p10", f"lungs of {REMOVED}, {REMOVED} and p10"),
        ("case_7_0000.nii.gz", f"{REMOVED}.nii.gz"),
        ("https://doi.org/10.1/2", "https://doi.org/10.1/2"),
        ("2/3 or a/b", "2/3 or a/b"),
        ("torch.nn.Conv3d", "torch.nn.Conv3d"),
        ("p10", "p10"),
        ("case_71, 0.8 +/- 0.1", "case_71, 0.8 +/- 0.1"),
        ("0.1.0", "0.1.0"),
    ],
)
def test_paths_and_names_of_cases_are_taken_out(text, cleaned):
    kept, left = contents(checkpoint({"where": (text,)}), "c.pth")
    assert kept["pretraining"]["note"] == {"where": (cleaned,)}
    assert any("1 paths" in line for line in left) == (text != cleaned)


def test_entries_under_a_path_or_a_name_of_a_case_are_taken_out():
    kept, left = contents(checkpoint({"p1": 1, "/data/x": 2, 3: 4, "lr": 5}), "c.pth")
    assert kept["pretraining"]["note"] == {3: 4, "lr": 5} and any("2 paths" in line for line in left)
    assert set(kept["network_weights"]) == {"weight"}, "a tensor that is called like a case"


def test_a_citation_may_share_a_word_with_a_case_but_holds_no_path():
    kept, _ = contents(checkpoint(citations=["a paper on CT", "/home/jane"]), "c.pth")
    assert kept["citations"] == ["a paper on CT", REMOVED]


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
