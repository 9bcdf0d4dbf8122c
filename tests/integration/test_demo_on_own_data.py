"""``nnunet_alice demo --data`` as a user runs it: subprocesses of the real commands, on somebody's labelled dataset."""

import json
import re
import shutil

import pandas as pd
import pytest

from nnunet_alice.demo.budget import Budget
from nnunet_alice.demo.own_data import read_own_data
from nnunet_alice.demo.workflow import Demo
from nnunet_alice.phantoms import make_population, write_subjects


@pytest.mark.slow
def test_demo_on_a_dataset_of_two_channels_leaves_it_as_it_is(tmp_path, monkeypatch):
    """No test image is pretrained on, the time is foretold, the table has a region's name."""
    folder = tmp_path / "Dataset007_Torso"
    options = {"spacing_mm": 16.0, "organs": ("liver", "stomach"), "labels_folder": "labelsTr"}
    write_subjects(folder, make_population(range(6)), images_folder="imagesTr", image_suffix="_0000", **options)
    for image in list((folder / "imagesTr").iterdir()):
        shutil.copy(image, image.with_name(image.name.replace("_0000", "_0001")))
    (folder / "truth.json").unlink()
    labels = {"background": 0, "abdomen": [1, 2], "stomach": 2}
    names = {"channel_names": {"0": "CT", "1": "again"}, "labels": labels, "regions_class_order": [1, 2]}
    (folder / "dataset.json").write_text(json.dumps(names | {"numTraining": 6, "file_ending": ".nii.gz"}))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr("nnunet_alice.demo.workflow._TRIAL_ITERATIONS", 2)
    data, steps = read_own_data(folder, labelled=2, test=2, seed=0), []
    small = {
        "pretraining": "AliceTrainer_1epochs_2iterations",
        "finetuning": "FineTuneTrainer_1epochs_2iterations_noTTA",
        "scratch": "FineTuneTrainer_scratch_1epochs_2iterations_noTTA",
    }
    demo = Demo(tmp_path / "demo", data, Budget(**small), steps.append, foretell=True)
    report = demo.run()
    assert list(report.dice["pretrained"]) == ["abdomen", "stomach"] and len(report.cases["pretrained"]) == 2
    written = pd.read_csv(demo.folder / "dice.csv", index_col="class")
    assert list(written.index) == ["abdomen", "stomach", "mean"]
    assert written["pretrained"]["mean"] == pytest.approx(report.mean("pretrained"), abs=1e-4)
    assert (report.labelled, report.pool) == (2, 4) and 0 <= report.won <= 2
    seen = json.loads((demo.unlabelled / "dataset.json").read_text())["dataset"]
    assert set(seen) == set(data.pool) and not set(seen) & set(data.test)
    assert any(re.match(r"from here about \d+ minutes", step) for step in steps)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
