"""A window in plans: what nnU-Net makes of it, and that it keeps what percentiles of the body cut off."""

import json

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from support.refused import refused

from nnunet_alice.errors import InputError
from nnunet_alice.files import read_json
from nnunet_alice.planning.window import WINDOW, WINDOWS, parse_window, set_window

BODY = {"percentile_00_5": -950.0, "percentile_99_5": 300.0, "mean": -60.0, "std": 280.0, "median": 0.0}


@pytest.fixture
def plans(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    content = {
        "foreground_intensity_properties_per_channel": {"0": dict(BODY), "1": dict(BODY)},
        "configurations": {
            "2d": {"normalization_schemes": ["CTNormalization", "ZScoreNormalization"]},
            "3d_cascade_fullres": {"inherits_from": "2d"},
        },
    }
    path = tmp_path / "Dataset900_CT" / "P.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    return path


def test_nnunet_clips_to_the_window_and_scales_it(plans):
    set_window("Dataset900_CT", "P", WINDOWS["lungs"])
    content = read_json(plans)
    assert content[WINDOW] == {"name": "lungs", "low": -1024.0, "high": 240.0}
    statistics = content["foreground_intensity_properties_per_channel"]
    emphysema = np.array([-1100.0, -1024, -990, -960, -392, 240, 900], dtype=np.float32)
    normalised = CTNormalization(False, statistics["0"]).run(emphysema.copy())
    np.testing.assert_allclose(normalised, (np.clip(emphysema, -1024, 240) + 392) / 632, atol=1e-6)
    assert len(np.unique(CTNormalization(False, BODY).run(emphysema.copy())[:4])) == 1  # the percentiles cut it off
    assert statistics["1"] == BODY  # no CT


def test_windows_by_name_and_by_numbers():
    assert parse_window(["lungs"]) == WINDOWS["lungs"]
    window = parse_window(["-200", "300.5"])
    assert (window.name, window.low, window.high) == ("own", -200, 300.5)
    for bad in (["bones"], ["1"], ["1", "x"], ["1", "2", "3"], ["5", "5"]):
        with pytest.raises(InputError):
            parse_window(bad)


def test_plans_without_ct_are_refused(plans):
    content = read_json(plans)
    content["configurations"]["2d"]["normalization_schemes"] = ["ZScoreNormalization"] * 2
    plans.write_text(json.dumps(content))
    with refused(InputError, option="--window"):
        set_window("Dataset900_CT", "P", WINDOWS["lungs"])
    assert read_json(plans) == content
