"""The command probe: tables, plot, and what cannot work."""

import pandas as pd
import pytest
from support.probed import names, write_probed

from nnunet_alice.cli.main import main


@pytest.fixture
def files(tmp_path):
    return write_probed(tmp_path)


def command(files, *more):
    arguments = ["--features", files / "f.npz", "--table", files / "t.csv", "-o", files / "out", *more]
    return main(["probe", *map(str, arguments)])


@pytest.mark.slow
def test_the_command_writes_tables_and_plot(files, capsys, real_figures):
    assert command(files, "--target", "severity", "--task", "regression") == 0
    printed = capsys.readouterr().out
    metrics = pd.read_csv(files / "out_metrics.csv").set_index("metric")
    assert f"r2: {metrics.loc['r2', 'value']:.3f} (95 % interval" in printed and "cases, seed 0; alpha: " in printed
    predictions = pd.read_csv(files / "out_predictions.csv")
    # Rows of the table are in another order than the features.
    assert metrics.loc["r2", "value"] > 0.8 and predictions["case"].tolist() == names(90).tolist()
    assert (files / "out.png").stat().st_size > 5000
    assert command(files, "--target", "ill", "--task", "classification") == 0
    assert pd.read_csv(files / "out_metrics.csv")["value"][0] > 0.85


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--target", "nothing", "--task", "regression"], "no column 'nothing'; it has: id, severity"),
        (["--target", "same", "--task", "classification"], "All 90 cases have the same 'same'"),
        (["--target", "words", "--task", "regression"], "holds 'x', which is no number"),
        (["--target", "severity", "--task", "survival"], "needs --event"),
        (["--target", "severity", "--task", "survival", "--event", "severity"], "must hold 0 and 1"),
        (["--target", "severity", "--task", "regression", "--id", "ill"], "more than one row for"),
        (["--target", "severity", "--task", "regression", "--folds", "60"], "180; use 30 folds or fewer"),
        (["--target", "severity", "--task", "regression", "--folds", "1"], "at least 2 folds"),
        (["--target", "severity", "--task", "classification"], "has 1 case, but 5 folds need"),
        (["--target", "severity", "--task", "survival", "--event", "ill"], "must be positive"),
    ],
)
def test_what_cannot_work_gets_one_sentence(files, capsys, more, words):
    assert command(files, *more) == 1
    assert words in capsys.readouterr().err


def test_unknown_ids_are_shown_beside_the_tables(files, capsys):
    table = pd.read_csv(files / "t.csv").assign(id=[f"other{n}" for n in range(90)])
    table.to_csv(files / "t.csv", index=False)
    assert command(files, "--target", "severity", "--task", "regression") == 1
    printed = capsys.readouterr().err
    assert "None of the 90 cases" in printed and "'case000'" in printed and "'other0'" in printed
