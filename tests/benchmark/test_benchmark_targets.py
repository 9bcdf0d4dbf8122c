"""Arms that predict a target: draws by strata, results from their tables, AUC and R2 with intervals and tests."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score, roc_auc_score
from support.benchmark_runs import CASES, write_dataset
from support.labelled_runs import DATASET
from support.refused import refused

from nnunet_alice.benchmark.measures import Predictions
from nnunet_alice.benchmark.parsing import parse_settings
from nnunet_alice.benchmark.plan import Cell
from nnunet_alice.benchmark.report import write_report
from nnunet_alice.benchmark.results import MEAN
from nnunet_alice.benchmark.runner import Runner
from nnunet_alice.benchmark.splits import Partition
from nnunet_alice.benchmark.target_results import _split_name
from nnunet_alice.cli.main import main
from nnunet_alice.errors import InputError, OccupiedError
from nnunet_alice.files import read_json
from nnunet_alice.targets.definitions import DatasetTargets, TargetDefinition

TRUTH = np.linspace(40, 75, CASES)


def settings(checkpoint, trainer="RegressionTrainer", **changes):
    """Scratch against one pretrained arm."""
    arms = {"scratch": {"trainer": f"{trainer}_scratch"}, "alice": {"trainer": trainer, "checkpoints": str(checkpoint)}}
    content = {"dataset": DATASET, "arms": arms, "test": {"folds": [0, 1]}, "labels": [2, 4], "draws": 2, "seeds": 2}
    return parse_settings(content | {"epochs": 4, "keep_at": [], "device": "cpu"} | changes)


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A dataset whose cases have an age, and are old or young; two folds."""
    checkpoint = write_dataset(tmp_path)
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    cases = sorted(path.stem for path in (tmp_path / "preprocessed" / DATASET).glob("nnUNetPlans_3d_fullres/*.pkl"))
    kinds = np.arange(len(cases)) % 2  # classes whose names are digits
    table = pd.DataFrame({"case": cases, "age": TRUTH[: len(cases)], "kind": kinds})
    table.to_csv(tmp_path / "labels.csv", index=False)
    for column, task in (("age", "regression"), ("kind", "classification")):
        words = ["targets", "-d", DATASET[7:10], "--table", str(tmp_path / "labels.csv"), "--target", column]
        assert main([*words, "--task", task, "--folds", "2"]) == 0
    return checkpoint


class Pretender:
    """Leaves what trainings would leave; pretrained ones err less.

    Args:
        runner: of the benchmark.
        table: (cases, error, rng) -> predictions.
    """

    def __init__(self, runner, table):
        self.runner, self.table, self.commands = runner, table, []

    def __call__(self, command, keep_open=()):
        words = command.words
        self.commands.append(command)
        if words[0] == "nnunet_alice":
            target = words[words.index("-o") + 1]
            Path(target).write_bytes(b"weights")
            return 0
        cell = next(c for c in self.runner.test_cells() if self.runner.folds[c.split] == int(words[3])
                    and str(self.runner.results_folder(c)) == command.environment["nnUNet_results"])  # fmt: skip
        folder = self.runner.fold_folder(cell)
        (folder / "validation").mkdir(parents=True)
        split = self.runner.splits[cell.split]
        pretrained = "-pretrained_weights" in words
        start = {"pretrained": pretrained, "training_cases": sorted(split["train"])}
        (folder / "start.json").write_text(json.dumps(start))
        (folder / "checkpoint_final.pth").write_bytes(b"")
        rng = np.random.default_rng([cell.draw, cell.seed, int(words[3]), pretrained])
        self.table(split["val"], 3.0 if pretrained else 12.0, rng).to_csv(
            folder / "validation" / "predictions.csv", index=False
        )
        return 0


def numbers(cases):
    """Age of cases named by number."""
    return np.array([TRUTH[int("".join(filter(str.isdigit, case)))] for case in cases])


def ages(cases, error, rng):
    return pd.DataFrame({"case": cases, "predicted_age": numbers(cases) + rng.normal(0, error, len(cases))})


def run(runner, table):
    runner.execute = Pretender(runner, table)
    outcome = runner.run()
    assert not outcome.failed
    return runner.execute


@pytest.mark.slow
def test_regression_is_reported_by_r2_of_all_test_cases(base, tmp_path):
    runner = Runner(settings(base, target="age"), tmp_path / "bench")
    pretender = run(runner, ages)
    trainings = [command for command in pretender.commands if command.words[0] == "nnUNetv2_train"]
    assert len(trainings) == 2 * 2 * 2 * 2 * 2  # folds, labels, draws, seeds, arms
    assert all("_targetage_0pictures_seed" in command.words[5] for command in trainings)
    assert all(command.environment["nnUNet_raw"] == str(runner.workspace.preprocessed) for command in trainings)
    report = write_report(tmp_path / "bench", 1)
    assert (report.done, report.planned, report.metric, report.title) == (32, 32, "r2", "R2")
    rows = report.summary[(report.summary["metric"] == "r2") & (report.summary["labels"] == 4)].set_index("arm")
    expected = {}
    for arm in ("scratch", "alice"):
        scores = []
        for draw in range(2):
            for seed in range(2):
                cells = [c for c in runner.test_cells() if (c.arm, c.draw, c.seed, c.labels) == (arm, draw, seed, 4)]
                table = pd.concat([pd.read_csv(runner.summaries(cell)[100]) for cell in cells])
                scores.append(r2_score(numbers(table["case"]), table["predicted_age"]))
        expected[arm] = np.mean(scores)
        assert rows.loc[arm, "mean"] == pytest.approx(expected[arm])
        assert rows.loc[arm, "low"] < rows.loc[arm, "mean"] < rows.loc[arm, "high"] + 1e-9
    assert rows.loc["alice", "difference"] == pytest.approx(expected["alice"] - expected["scratch"])
    assert rows.loc["alice", "draws_better"] == rows.loc["alice", "draws_paired"] == 2
    assert rows.loc["alice", "p"] < 0.05 and rows.loc["alice", "difference_low"] > 0
    page = (report.folder / "report.md").read_text()
    assert "### R2" in page and "Dice" not in page and (report.folder / "label_efficiency.png").is_file()


@pytest.mark.slow
def test_classes_are_reported_by_auc_and_draws_show_all_of_them(base, tmp_path):
    def kinds(cases, error, rng):
        kind = (numbers(cases) - TRUTH[0]) / (TRUTH[1] - TRUTH[0]) % 2  # 1 for old
        old = np.clip(0.5 + (kind - 0.5) * 0.6 + rng.normal(0, error / 40, len(cases)), 0, 1)
        table = pd.DataFrame({"case": cases, "predicted": np.where(old > 0.5, 1, 0)})
        return table.assign(probability_1=old, probability_0=1 - old)

    runner = Runner(settings(base, "ClassificationTrainer"), tmp_path / "bench")
    run(runner, kinds)
    known = runner.workspace.measure.values["kind"]
    assert all(known[split["train"]].nunique() == 2 for split in runner.splits.values())
    report = write_report(tmp_path / "bench", 1)
    rows = report.summary[(report.summary["metric"] == "auc") & (report.summary["labels"] == 2)].set_index("arm")
    cells = [c for c in runner.test_cells() if (c.arm, c.labels) == ("scratch", 2)]
    scores = []
    for draw, seed in ((0, 0), (0, 1), (1, 0), (1, 1)):
        own = [runner.summaries(c)[100] for c in cells if (c.draw, c.seed) == (draw, seed)]
        table = pd.concat(map(pd.read_csv, own))
        scores.append(roc_auc_score(known[table["case"]] == 1, table["probability_1"]))
    assert rows.loc["scratch", "mean"] == pytest.approx(np.mean(scores))
    assert {"auc", "balanced_accuracy", "brier"} <= set(report.summary["metric"])


def test_a_column_may_end_like_another():
    columns = ["age", "bone_age"]
    assert [_split_name(name, columns) for name in ("r2_bone_age", "r2_age", "r2")] == [
        ("r2", "bone_age"), ("r2", "age"), ("r2", MEAN)
    ]  # fmt: skip


def test_what_does_not_fit_is_refused(base, tmp_path):
    with refused(InputError, option="scratch"):
        arms = {"scratch": None, "alice": {"trainer": "RegressionTrainer", "checkpoints": str(base)}}
        Runner(settings(base, arms=arms), tmp_path / "other").prepare()
    runner = Runner(settings(base, target="age"), tmp_path / "bench")
    runner.prepare()
    path = tmp_path / "preprocessed" / DATASET / "targets.csv"
    path.write_text(path.read_text().replace("40.0", "41.0"))
    with refused(OccupiedError, path="targets.csv"):
        Runner(settings(base, target="age"), tmp_path / "bench").prepare()
    assert read_json(tmp_path / "bench" / "settings.json")["target"] == "age"


def test_targets_may_be_corrected_after_a_refusal(base, tmp_path):
    with refused(InputError):
        Runner(settings(base, target="size"), tmp_path / "bench").prepare()
    path = tmp_path / "preprocessed" / DATASET / "targets.csv"
    path.write_text(path.read_text().replace("40.0", "41.0"))
    for stored in (tmp_path / "raw").glob("*/targets.csv"):
        stored.write_text(path.read_text())
    Runner(settings(base, target="age"), tmp_path / "bench").prepare()
    assert (tmp_path / "bench" / "preprocessed" / DATASET / "targets.csv").read_text() == path.read_text()


@pytest.mark.parametrize("how", ["cases", "file", "folds", "split"])
def test_cases_without_the_target_are_left_out_with_one_line(base, tmp_path, caplog, how):
    """They are named by a list of test cases or a split as often as not."""
    table, folder = pd.read_csv(tmp_path / "labels.csv"), tmp_path / "preprocessed" / DATASET
    names = table["case"].tolist()
    for stored in [path for name in ("raw", "preprocessed") for path in (tmp_path / name).glob("*/targets.csv")]:
        table.assign(age=table["age"].where(~table["case"].isin([names[1], names[6]]))).to_csv(stored, index=False)
    assert (folder / "targets.csv").is_file()
    (tmp_path / "file.json").write_text(json.dumps(names[:3]))
    (tmp_path / "split.json").write_text(json.dumps([{"train": names[3:], "val": names[:3]}]))
    test = {"cases": {"cases": 2}, "folds": {"folds": [0, 1]}, "file": {"file": str(tmp_path / "file.json")}}
    test["split"] = {"split": str(tmp_path / "split.json"), "folds": [0]}
    runner = Runner(settings(base, target="age", test=test[how], labels=[1]), tmp_path / "bench")
    runner.prepare()
    used = {case for division in runner.divisions for case in (*division.pool, *division.test)}
    assert used == set(names) - {names[1], names[6]}
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert told == [f"2 of 8 cases have no value of 'age' and are left out: {names[1]}, {names[6]}."]


@pytest.mark.slow
def test_labels_count_patients_where_the_table_has_them(base, tmp_path):
    names = pd.read_csv(tmp_path / "labels.csv")["case"].tolist()
    for stored in [path for name in ("raw", "preprocessed") for path in (tmp_path / name).glob("*/targets.csv")]:
        table = pd.read_csv(stored)
        table.assign(group=[f"p{names.index(case) // 2}" for case in table["case"]]).to_csv(stored, index=False)
    runner = Runner(settings(base, target="age", test={"cases": 1}, labels=[1, 2]), tmp_path / "bench")
    run(runner, ages)
    assert {len(split["train"]) for split in runner.splits.values()} == {2, 4}
    report = write_report(tmp_path / "bench", 1)
    assert set(report.summary["labels"]) == {1, 2}
    assert "numbers of labels count patients" in (report.folder / "report.md").read_text()


@pytest.fixture
def graded(tmp_path):
    """Predictions of grades, one of which is called None."""
    table = pd.DataFrame({"case": ["a", "NA", "c", "d"], "grade": ["None", "Mild", "None", "Mild"]})
    target = TargetDefinition("grade", "classification", ("grade",), ("Mild", "None"))
    mild = [0.1, 0.9, 0.8, 0.7]
    said = {"case": table["case"], "predicted": ["None", "Mild", "Mild", "Mild"], "probability_Mild": mild}
    pd.DataFrame(said).assign(probability_None=1 - np.array(mild)).to_csv(tmp_path / "predictions.csv", index=False)
    return Predictions(DatasetTargets(table, {"grade": target}, tmp_path), target), tmp_path / "predictions.csv"


def test_a_class_may_be_called_none(graded):
    measure, path = graded
    assert measure.cases(path) == ["NA", "a", "c", "d"]
    assert measure.score(path) == 0.75 and measure.read(path)["predicted"].tolist() == ["None", *["Mild"] * 3]


def test_a_draw_that_defines_no_score_leaves_the_choice_to_the_others(tmp_path, monkeypatch):
    arms = {"scratch": {"trainer": "RegressionTrainer_scratch", "learning_rates": [1e-4, 1e-3]}}
    chosen = settings(tmp_path, target="age", arms=arms, tuning={"labels": 1, "cases": 2, "draws": 2})
    runner = Runner(chosen, tmp_path)
    scores = {(1e-4, 0): np.nan, (1e-3, 0): np.nan, (1e-4, 1): 0.2, (1e-3, 1): 0.6}
    runner.divisions = [Partition("fixed", ("a", "b", "c"), ("d",))]
    monkeypatch.setattr(runner, "is_done", lambda _: True)
    monkeypatch.setattr(runner, "summaries", lambda cell: {100: (cell.learning_rate, cell.draw)})
    runner.workspace.measure = SimpleNamespace(score=scores.__getitem__)
    assert runner.tuning_dice("scratch", "fixed") == {1e-4: 0.2, 1e-3: 0.6}
    assert runner.learning_rate(Cell("test", "scratch", None, "fixed", 2, 0, 0)) == 1e-3
