"""The report on planted disease: arms meet on the runs that both have, and patients' own lungs do not count."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from disease_report import MEASURES, measured, write_report

WITHIN = next(measure for measure in MEASURES if measure.within and measure.question.name == "emphysema")
ACROSS = next(measure for measure in MEASURES if not measure.within and measure.question.name == "emphysema")


def predictions(arm: str, seed: int, error: float, offset: float = 0.0) -> pd.DataFrame:
    """Extents of six patients with four scans each, off by noise and by what is a patient's own."""
    rng = np.random.default_rng(7)
    rows = []
    for patient in range(6):
        own = offset * rng.normal()
        for scan in range(4):
            truth = rng.uniform(0, 0.3)
            row = {"arm": arm, "seed": seed, "fold": patient % 3, "question": "emphysema", "patient": f"p{patient}"}
            score = truth + own + error * rng.normal()
            rows.append(row | {"case": f"p{patient}_{scan}", "truth": truth, "score0": score})
    return pd.DataFrame(rows).assign(score1=np.nan, score2=np.nan)


def test_what_a_patient_brings_along_counts_across_patients_and_not_within():
    exact, shifted = predictions("a", 0, 0.05), predictions("a", 0, 0.05, offset=5)
    assert measured(shifted, ACROSS)[0] < -10
    value, spread = measured(shifted, WITHIN)
    assert value == pytest.approx(measured(exact, WITHIN)[0])
    naive_left = naive_all = 0.0
    for _, scans in shifted.groupby("patient"):
        truth, score = (scans[name] - scans[name].mean() for name in ("truth", "score0"))
        naive_left, naive_all = naive_left + ((truth - score) ** 2).sum(), naive_all + (truth**2).sum()
    assert value == pytest.approx(1 - naive_left / naive_all)
    assert np.percentile(spread, 2.5) < value < np.percentile(spread, 97.5)


def test_arms_are_compared_by_the_runs_that_both_have(tmp_path, capsys):
    """The second seed of the reference is bad, and the other arm has the first alone."""
    parts = [predictions("reference", 0, 0.02), predictions("reference", 1, 1.0), predictions("other", 0, 0.02)]
    others = pd.concat(parts)
    rows = [others]
    for question in ("consolidation", "presence", "subtype"):
        truth = {"presence": "ill", "subtype": "paraseptal"}.get(question, 0.1)
        rows.append(others.assign(question=question, truth=truth).fillna(0.3))
    pd.concat(rows).to_csv(tmp_path / "predictions_seed0.csv", index=False)
    write_report(tmp_path, "reference")
    differences = pd.read_csv(tmp_path / "differences.csv").set_index("against")
    assert differences.loc["other", ACROSS.title].startswith("+0.00 [+0.00, +0.00]")
    assert "other" in capsys.readouterr().out
