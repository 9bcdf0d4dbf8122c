"""The script for the first GPU runs without one, and its verdicts are right."""

import re
from dataclasses import replace

import gpu_check
import pytest


@pytest.mark.slow
def test_the_script_runs_and_says_what_to_send(folders, capsys, tmp_path):
    out = tmp_path / "figures.json"
    status = gpu_check.main(
        ["-device", "cpu", "--size", "tiny", "--only", "Alice noC", "FineTune AdamW", "-o", str(out)]
    )
    text = capsys.readouterr().out
    assert status == 0 and out.is_file()
    rows = {re.split(r"\s{2,}", line)[0] for line in text.splitlines() if line.rstrip().endswith(" ok")}
    assert rows == {"stock nnU-Net", "Alice noCASA", "Alice noContrast", "FineTune AdamW"}
    assert "send this table" in text.splitlines()[-1]


def test_each_fault_has_a_verdict():
    row = gpu_check.Row("x", "alice.AliceTrainer", waits=2, graphs=3)
    good = gpu_check.Result("x", losses=[1.0], skipped=3, waits=2, graphs=3, breaks=0, loss_single=1.0, loss_half=1.001)
    assert gpu_check.verdict(row, good) == "ok"
    faults = {
        "losses": [float("nan")], "skipped": 11, "waits": 3, "graphs": 4, "breaks": 1, "loss_half": 1.02,
    }  # fmt: skip
    for name, value in faults.items():
        assert gpu_check.verdict(row, replace(good, **{name: value})).startswith("WRONG"), name
    assert gpu_check.verdict(row, replace(good, gib=2.3, planned_gib=2.0)).startswith("WRONG")
