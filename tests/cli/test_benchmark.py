"""The command benchmark: flags, and what is wrong with them."""

import pytest
from support.benchmark_runs import CELLS, set_up_dataset

from nnunet_alice.cli.main import main


@pytest.fixture
def base(tmp_path, monkeypatch):
    return set_up_dataset(tmp_path, monkeypatch)


def test_flags_make_the_same_commands_as_yaml(base, capsys, monkeypatch):
    flags = ["-o", base / "bench", "-d", 901, "--arm", "scratch@1e-2", "--arm", f"alice={base / 'pretrained.pth'}@1e-3"]
    flags += ["--labels", 2, "all", "--test_cases", 3, "--draws", 2, "--epochs", 4, "--iterations", 2, "-device", "cpu"]
    assert main(["benchmark", *map(str, flags), "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + CELLS and "lr0.01_keep25-50_seed0" in lines[1]
    quick = [base / "quick" if flag == base / "bench" else flag for flag in flags]
    assert main(["benchmark", *map(str, quick), "--dry_run", "--disable_tta"]) == 0
    assert "lr0.01_keep25-50_noTTA_seed0" in capsys.readouterr().out
    fewer = [base / "fewer" if flag == base / "bench" else flag for flag in flags]
    assert main(["benchmark", *map(str, fewer), "--dry_run", "--draws_of_all", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + CELLS - 2  # one run of all less in each arm
    monkeypatch.chdir(base)
    arm = ["--arm", "alice=pretrained.pth@1e-3"]
    assert main(["benchmark", *map(str, flags[:6]), *arm, *map(str, flags[8:]), "--dry_run"]) == 0
    assert capsys.readouterr().out.splitlines() == lines  # relative paths count from here
    assert main(["report", "-i", str(base / "bench")]) == 1
    assert "No test run" in capsys.readouterr().err
    assert main(["benchmark", "-o", str(base / "bench"), "-d", "901"]) == 1
    assert "lack 'arms'" in capsys.readouterr().err
    assert main(["benchmark", *map(str, flags), "--arm", "alice=other.pth"]) == 1
    assert "list its checkpoints in one" in capsys.readouterr().err
