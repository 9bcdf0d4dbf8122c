"""The report's numbers against recomputation from the predictions, and what its page promises."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from scipy import stats
from support.benchmark_runs import finished_benchmark, make_runner, settings, write_dataset
from support.labelled_runs import DATASET
from support.refused import refused

from nnunet_alice.benchmark.leakage import leakage
from nnunet_alice.benchmark.report import summarise, write_report
from nnunet_alice.benchmark.results import collect
from nnunet_alice.benchmark.settings import Arm
from nnunet_alice.errors import InputError, NotPreparedError

CELLS = 8


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A benchmark whose cells are all done."""
    yield from finished_benchmark(tmp_path_factory.mktemp("report"))


def runner_of(base):
    return make_runner(base, settings(base / "pretrained.pth"))[0]


def dice_of(one: Path, other: Path, label: int) -> float:
    a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) == label for path in (one, other))
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.slow
def test_every_number_is_that_of_its_predictions(finished):
    runner = runner_of(finished)
    runner.prepare()
    cases, unusable = collect(runner, 1)
    assert not unusable and not cases.duplicated(["arm", "labels", "draw", "percent", "case", "class"]).any()
    assert len(cases) == CELLS * 2 * 3 * 3  # shares of the run, test cases, two classes and their mean
    truth = runner.workspace.dataset_folder / "gt_segmentations"
    for cell in runner.test_cells():
        for percent, summary in runner.summaries(cell).items():
            keys = {"arm": cell.arm, "labels": len(runner.splits[cell.split]["train"]), "draw": cell.draw}
            keys["percent"] = percent
            own = cases[np.logical_and.reduce([cases[key] == value for key, value in keys.items()])]
            assert own["case"].nunique() == 3
            for case, rows in own.groupby("case"):
                dice = rows.set_index("class")["dice"]
                files = summary.parent / f"{case}.nii.gz", truth / f"{case}.nii.gz"
                expected = [dice_of(*files, label) for label in (1, 2)]
                assert [dice["front"], dice["back"]] == pytest.approx(expected)
                assert dice["mean"] == pytest.approx(np.mean(expected))


def test_kept_metrics_are_those_of_the_present_predictions(finished):
    runner = runner_of(finished)
    runner.prepare()
    first, _ = collect(runner, 1)
    folder = runner.summaries(runner.test_cells()[0])[100].parent
    kept = next(folder.glob("metrics_*.csv"))
    before = kept.stat().st_mtime_ns
    again, _ = collect(runner, 1)
    assert kept.stat().st_mtime_ns == before
    pd.testing.assert_frame_equal(first, again)
    (folder / "summary.json").touch()
    collect(runner, 1)
    assert kept.stat().st_mtime_ns > before


def made_up(draws=4, cases=12, seed=0, gains=(0.04, 0.06)) -> pd.DataFrame:
    """Results of two arms with two checkpoints for the second, which are better by about these gains."""
    rng = np.random.default_rng(seed)
    rows = []
    hardness, luck = rng.normal(0.7, 0.1, cases), rng.normal(0, 0.02, draws)
    for arm, checkpoint, gain in (("scratch", -1, 0.0), ("alice", 0, gains[0]), ("alice", 1, gains[1])):
        for draw in range(draws):
            for case in range(cases):
                dice = hardness[case] + luck[draw] + gain + rng.normal(0, 0.01)
                row = {"arm": arm, "checkpoint": checkpoint, "partition": "fixed", "labels": 3, "draw": draw, "seed": 0}
                row |= {"percent": 100, "case": f"c{case}", "class": "mean", "dice": dice, "surface_dice": dice}
                rows.append(row | {"hd95_mm": 10 * (1 - dice)})
    return pd.DataFrame(rows)


def test_statistics_against_a_recomputation():
    cases = made_up()
    summary = summarise(cases, "scratch", seed=1).set_index(["metric", "arm"])
    means = cases.groupby(["arm", "draw", "case"])["dice"].mean()
    row = summary.loc[("dice", "alice")]
    assert row["mean"] == pytest.approx(means["alice"].mean())
    difference = (means["alice"] - means["scratch"]).groupby("case").mean()
    assert row["difference"] == pytest.approx(difference.mean()) and 0.03 < row["difference"] < 0.07
    assert row["p"] == pytest.approx(stats.wilcoxon(difference).pvalue) and row["p_holm"] == pytest.approx(row["p"])
    assert row["difference_low"] < row["difference"] < row["difference_high"] < 0.08
    assert (row["runs"], row["draws"], row["cases"]) == (8, 4, 12) and row["draws_better"] == 4
    assert summary.loc[("hd95_mm", "alice"), "draws_better"] == 4  # lower is better
    baseline = summary.loc[("dice", "scratch")]
    assert baseline["mean"] == pytest.approx(means["scratch"].mean()) and np.isnan(baseline["p"])


@pytest.mark.slow
def test_a_class_that_one_arm_invents_counts_against_it():
    """Of ten cases three lack the class: scratch invents it there, the first checkpoint not, the second in one."""
    cases = made_up(cases=10)
    cases = cases[~((cases["arm"] == "alice") & (cases["draw"] == 3))]  # of a missing run nothing is known
    lacking = cases["case"].isin(["c0", "c1", "c2"])
    invented = lacking & ((cases["arm"] == "scratch") | ((cases["checkpoint"] == 1) & (cases["case"] == "c2")))
    metrics = ["dice", "surface_dice", "hd95_mm"]
    cases.loc[lacking, metrics] = np.nan
    cases.loc[invented, metrics] = [0.0, 0.0, 50.0]
    summary = summarise(cases, "scratch", seed=1).set_index(["metric", "arm"])
    means = cases[~lacking & (cases["draw"] < 3)].groupby(["arm", "draw", "case"])["dice"].mean()
    there = (means["alice"] - means["scratch"]).groupby("case").mean()
    expected = np.array([*there, 1.0, 1.0, 0.5])
    row = summary.loc[("dice", "alice")]
    assert row["difference"] == pytest.approx(expected.mean()) and row["draws_paired"] == 3
    assert row["p"] == pytest.approx(stats.wilcoxon(expected).pvalue)
    assert summary.loc[("hd95_mm", "alice"), "difference"] < -10
    assert (row["cases"], summary.loc[("dice", "scratch"), "cases"]) == (8, 10)
    silent = cases.copy()
    silent.loc[lacking, metrics] = np.nan  # where neither invents it, the case says nothing
    row = summarise(silent, "scratch", seed=1).set_index(["metric", "arm"]).loc[("dice", "alice")]
    assert row["difference"] == pytest.approx(there.mean()) and row["cases"] == 7


@pytest.mark.parametrize("baseline", ["scratch", "alice"])
def test_intervals_know_how_seeds_differ(baseline):
    """Two seeds of very different gains: a loop that draws seeds, draws and cases anew gives the interval."""
    cases = made_up(gains=(0.0, 0.2))
    other = {"scratch": "alice", "alice": "scratch"}[baseline]
    row = summarise(cases, baseline, seed=1).set_index(["metric", "arm"]).loc[("dice", other)]
    table = cases.set_index(["arm", "checkpoint", "draw", "case"])["dice"].sort_index()
    seeds = [table[other, checkpoint].unstack().to_numpy() for checkpoint in table[other].index.unique(0)]
    against = [table[baseline, checkpoint].unstack().to_numpy() for checkpoint in table[baseline].index.unique(0)]
    rng, means = np.random.default_rng(5), []
    for _ in range(2000):
        draws, columns = rng.integers(0, 4, 4), rng.integers(0, 12, 12)
        ours, theirs = (
            np.mean([arm[number][np.ix_(draws, columns)] for number in rng.integers(0, len(arm), len(arm))])
            for arm in (seeds, against)
        )
        means.append(ours - theirs)
    assert row["difference"] == pytest.approx(np.mean(seeds) - np.mean(against))
    interval = row["difference_low"], row["difference_high"]
    assert interval == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.01)
    assert interval[1] - interval[0] > 0.19


def test_a_class_that_no_test_case_has_is_no_comparison():
    cases = made_up()
    absent = cases.assign(**{"class": "absent", "dice": np.nan, "surface_dice": np.nan, "hd95_mm": np.nan})
    summary = summarise(pd.concat([cases, absent]), "scratch", seed=1)
    rows = summary[(summary["class"] == "absent") & (summary["arm"] == "alice")]
    assert len(rows) == 3 and rows[["mean", "difference", "p"]].isna().all(axis=None)
    assert (rows["draws_better"] == 0).all()


def test_only_draws_that_both_arms_have_are_compared():
    cases = made_up()
    cases.loc[(cases["arm"] == "alice") & (cases["draw"] == 3), "dice"] += 0.3
    partly = cases[~((cases["arm"] == "scratch") & (cases["draw"] == 3))]
    row = summarise(partly, "scratch", seed=1).set_index(["metric", "arm"]).loc[("dice", "alice")]
    assert row["draws_paired"] == 3 and row["draws"] == 4 and row["difference"] < 0.07


def test_the_same_seed_gives_the_same_table():
    pd.testing.assert_frame_equal(summarise(made_up(), "scratch", 3), summarise(made_up(), "scratch", 3))


@pytest.mark.slow
def test_the_report_needs_and_changes_nothing_but_its_folder(finished, tmp_path, monkeypatch):
    """A copy, without the preprocessed dataset, the checkpoints and nnU-Net's folders: the same report."""
    usual = write_report(finished / "bench", 1)
    bench = tmp_path / "copy"
    shutil.copytree(finished / "bench", bench)  # links become files
    pretrained = finished / "pretrained.pth"
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nowhere"))
    content = pretrained.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in bench.rglob("*") if path.is_file()}
    try:
        pretrained.unlink()
        moved = write_report(bench, 1)
    finally:
        pretrained.write_bytes(content)
    pd.testing.assert_frame_equal(usual.summary, moved.summary)
    assert (usual.folder / "report.md").read_text() == (moved.folder / "report.md").read_text()
    after = {path: path.stat().st_mtime_ns for path in bench.rglob("*") if path.is_file()}
    changed = {path for path in after if after[path] != before.get(path)}
    assert changed and all(path.parent == bench / "report" or path.name.startswith("metrics_") for path in changed)


@pytest.mark.slow
def test_arms_with_other_trainers_are_told(finished):
    assert "Arms differ in more" not in (finished / "bench" / "report" / "report.md").read_text()
    arms = settings(finished / "pretrained.pth")["arms"]
    arms["alice"]["trainer"] = "FineTuneTrainer_decoderFirst"
    make_runner(finished, settings(finished / "pretrained.pth", arms=arms))[0].prepare()
    page = (write_report(finished / "bench", 1).folder / "report.md").read_text()
    assert "more than their start**: their trainers are FineTuneTrainer, FineTuneTrainer_decoderFirst." in page
    runner_of(finished).prepare()
    write_report(finished / "bench", 1)


@pytest.mark.slow
def test_an_unfinished_or_wrong_benchmark_says_so(tmp_path, monkeypatch):
    write_dataset(tmp_path)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    runner, pretender = make_runner(tmp_path, settings(tmp_path / "pretrained.pth"), die_at=6)
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    broken = pretender.finished[0] / "validation"
    next(broken.glob("*.nii.gz")).unlink()
    (pretender.finished[1] / "start.json").write_text(json.dumps({"pretrained": None}))
    report = write_report(tmp_path / "bench", 1)
    page = (report.folder / "report.md").read_text()
    assert report.planned == CELLS and report.done == 3  # two of five cannot be used, not even half of the run
    assert "not complete" in page and page.count("**Left out**") == 2 and "is missing" in page


@pytest.mark.slow
def test_a_run_that_cannot_be_used_is_in_no_picture(tmp_path, monkeypatch):
    """The first run of scratch lacks all of its predictions: the next pair of runs is shown."""
    write_dataset(tmp_path)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    runner = make_runner(tmp_path, settings(tmp_path / "pretrained.pth"))[0]
    runner.run()
    first = next(cell for cell in runner.test_cells() if cell.arm == "scratch")
    for prediction in (runner.fold_folder(first) / "validation").glob("*.nii.gz"):
        prediction.unlink()
    report = write_report(tmp_path / "bench", 1)
    assert report.done == CELLS - 1 and (report.folder / "examples.png").is_file()


def test_nothing_finished_is_an_error_with_the_next_step(tmp_path, monkeypatch):
    write_dataset(tmp_path)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    with refused(InputError, path="bench", command="nnunet_alice benchmark"):
        write_report(tmp_path / "bench", 1)
    runner_of(tmp_path).prepare()
    with refused(NotPreparedError, path="bench", command="nnunet_alice benchmark"):
        write_report(tmp_path / "bench", 1)


def pretrained_on(path: Path, *images: str) -> Arm:
    """An arm whose checkpoint says that it saw these images, one a case."""
    dataset = {f"u{number}": {"images": [image], "label": ""} for number, image in enumerate(images)}
    torch.save({"pretraining": {"dataset_json": {"dataset": dataset}}}, path)
    return Arm("alice", checkpoints=(str(path),))


def test_leakage_is_told_from_the_checkpoint(tmp_path):
    arm = pretrained_on(tmp_path / "a.pth", *(f"/data/case{i:02d}_0000.nii.gz" for i in range(4)))
    assert "SAW images of 2 of 3" in leakage(arm, {"case02": [], "case03": [], "case07": []})
    assert "did not see" in leakage(arm, {"case07": []})
    assert "SAW" in leakage(arm, {"BTCV_0001": ["/raw/case01.nii.gz"]})
    torch.save({"network_weights": {}}, tmp_path / "b.pth")
    assert "unknown" in leakage(Arm("x", checkpoints=(str(tmp_path / "b.pth"),)), {"case07": []})
    assert "SAW" in leakage(Arm("x", checkpoints=("gone.pth",), saw_test_images=True), {"case07": []})
    assert leakage(Arm("scratch"), {"case07": []}) == "no pretraining"


@pytest.mark.parametrize(
    ("seen", "tests", "says"),
    [
        # a folder a case, as KiTS and TotalSegmentator have it: the file's name is that of every case
        (
            ["/k/case_1/imaging.nii.gz", "/k/case_2/imaging.nii.gz"],
            {"case_2": [], "case_3": []},
            "SAW images of 1 of 2",
        ),
        (["/k/s1/ct.nii.gz", "/k/s2/ct.nii.gz"], {"a": ["/t/s3/ct.nii.gz"], "b": ["/t/s4/ct.nii.gz"]}, "did not see"),
        # numbers of cases that look like channels, as AMOS has them
        (["/a/amos_0001.nii.gz", "/a/amos_0507.nii.gz"], {"amos_0001": []}, "SAW images of 1 of 1"),
        (["/a/amos_0507.nii.gz"], {"x": ["/a/amos_0001.nii.gz"], "y": ["/a/amos_0002.nii.gz"]}, "did not see"),
        # the same file under another name of the case
        (["/a/1.nii.gz", "/b/1.nii.gz"], {"x": ["/b/1.nii.gz"], "y": ["/c/1.nii.gz"]}, "SAW images of 1 of 2"),
    ],
)
def test_leakage_by_the_usual_layouts(tmp_path, seen, tests, says):
    assert says in leakage(pretrained_on(tmp_path / "a.pth", *seen), tests)


@pytest.mark.slow
def test_folds_of_different_size_are_one_row_and_never_two_seeds(tmp_path, monkeypatch):
    """Cross-validation with every case: each case is tested once, though the folds train on 5 and 6 cases."""
    write_dataset(tmp_path)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.delenv("nnUNet_raw", raising=False)
    names = sorted(path.name[:6] for path in (tmp_path / "preprocessed" / DATASET / "gt_segmentations").iterdir())
    split = [{"train": [n for n in names if n not in v], "val": v} for v in (names[:3], names[3:6], names[6:])]
    (tmp_path / "preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(split))
    content = settings(tmp_path / "pretrained.pth", test={"folds": [0, 1, 2]}, labels=["all"])
    runner, pretender = make_runner(tmp_path, content)
    assert len(runner.run().done) == len(set(pretender.finished)) == 12  # folds, draws, arms
    report = write_report(tmp_path / "bench", 1)
    assert (report.done, report.planned) == (12, 12)
    rows = report.summary.query("metric == 'dice' and `class` == 'mean' and percent == 100")
    assert rows["labels"].tolist() == [5, 5] and rows["cases"].tolist() == [8, 8] and rows["runs"].tolist() == [6, 6]
