"""The command report: its page, and a different baseline."""

import numpy as np
import pandas as pd
import pytest
from support.benchmark_runs import finished_benchmark

from nnunet_alice.cli.main import main

CELLS = 8


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A benchmark whose cells are all done."""
    yield from finished_benchmark(tmp_path_factory.mktemp("report"))


@pytest.mark.slow
def test_the_page_says_what_it_must(finished, capsys, real_figures):
    assert main(["report", "-i", str(finished / "bench"), "-np", "1"]) == 0
    folder = finished / "bench" / "report"
    assert f"{CELLS} of {CELLS} runs" in capsys.readouterr().out
    page = (folder / "report.md").read_text()
    head, tables = page.split("## Mean over classes")
    for words in ("Split", "drawn with seed 1", "3 test cases", "2 draws", "pretraining seeds: alice 1"):
        assert words in head
    for words in ("2|A∩B|", "within 2 mm", "95th percentiles", "Wilcoxon", "unknown: pretrained.pth does not say"):
        assert words in head
    assert "not complete" not in head and "2 of 2" in tables and "front" in tables
    summary = pd.read_csv(folder / "summary.csv")
    row = summary.query("metric == 'dice' and `class` == 'mean' and arm == 'alice' and percent == 100 and labels == 2")
    assert f"{row['mean'].item():.4f} [{row['low'].item():.4f}, {row['high'].item():.4f}]" in tables
    assert "| labels | % of run | scratch | alice |" in tables
    low, high = row["difference_low"].item(), row["difference_high"].item()
    assert low > 0 and f"**{row['difference'].item():+.4f} [{low:+.4f}, {high:+.4f}]**, 2 of 2" in tables
    assert row["difference"].item() > 0.03 and len(pd.read_csv(folder / "cases.csv")) == CELLS * 18
    for picture in ("label_efficiency.png", "examples.png"):
        assert (folder / picture).read_bytes()[:4] == b"\x89PNG" and picture in page


@pytest.mark.slow
def test_another_baseline_turns_the_differences_round_and_has_its_own_folder(finished, capsys):
    bench = finished / "bench"
    asked = (bench / "settings.json").read_text()
    assert main(["report", "-i", str(bench), "-np", "1", "--baseline", "nobody"]) == 1
    assert "'nobody' is not among the arms: scratch, alice" in capsys.readouterr().err
    for words in ([], ["--baseline", "alice"]):
        assert main(["report", "-i", str(bench), "-np", "1", *words]) == 0
    assert "against alice" in capsys.readouterr().out and (bench / "settings.json").read_text() == asked
    keys = ["labels", "percent", "class", "metric"]
    usual, turned = (pd.read_csv(bench / name / "summary.csv") for name in ("report", "report_against_alice"))
    usual, turned = usual[usual["arm"] == "alice"], turned[turned["arm"] == "scratch"]
    both = usual.merge(turned, on=keys, suffixes=("", "_turned"), validate="one_to_one")
    assert len(both) == len(usual) > 0
    np.testing.assert_allclose(both["difference"], -both["difference_turned"], atol=1e-5)
    assert "minus alice" in (bench / "report_against_alice" / "report.md").read_text()
