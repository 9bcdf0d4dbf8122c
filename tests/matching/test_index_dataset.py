"""``anatomy --method embedding`` on phantoms: indices, resuming, what is refused, and that training helps."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.pretraining_runs import make_trainer, phantom_images, with_settings, write_run
from support.refused import refused
from support.small_datasets import set_folders

from nnunet_alice.cli.common import SOME_FAILED
from nnunet_alice.cli.main import main
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import CheckpointError, NotPreparedError
from nnunet_alice.matching.calibration import read_calibration
from nnunet_alice.matching.index import IndexStore
from nnunet_alice.matching.index_dataset import default_checkpoint, index_dataset
from nnunet_alice.matching.registry import open_matcher
from nnunet_alice.matching.search import EmbeddingMatcher
from nnunet_alice.parts import Part
from nnunet_alice.phantoms import corresponding_point, make_subject, render
from nnunet_alice.trainers.anatomical_embedding import AnatomicalEmbeddingTrainer

pytestmark = pytest.mark.slow

SPACING_MM = 12.0
CASES = 4
COMMAND = ["anatomy", "-d", "900", "--method", "embedding"]


def trainer_class(name: str, iterations: int) -> type:
    """A trainer with short descriptors."""
    few = {"positives": 40, "fine_hardest": 200, "fine_negatives": 60, "coarse_hardest": 60, "coarse_negatives": 40}
    own = {"run.epochs": 1, "run.iterations": iterations, "method.validation_batches": 1, "method.dimension": 32}
    own |= {f"method.contrast.{key}": value for key, value in few.items()}
    return with_settings(AnatomicalEmbeddingTrainer, own, name)


def make_checkpoints(base: Path) -> dict[str, Path]:
    """A trained and an untrained network's checkpoints."""
    made = {}
    for name, iterations in (("AnatomicalEmbeddingTrainer", 80), ("AnatomicalEmbeddingTrainer_untrained", 0)):
        trainer = make_trainer(trainer_class(name, iterations=iterations), base)
        if iterations:
            trainer.run_training()
        else:
            trainer.initialize()
        made[name] = Path(trainer.output_folder) / "checkpoint_final.pth"
        trainer.save_checkpoint(str(made[name]))
    return made


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folders with phantoms and both checkpoints; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, folder)
        images = phantom_images(CASES, 1, SPACING_MM)
        write_run(folder / "preprocessed", images, spacing=(SPACING_MM,) * 3, features=(8, 16, 32), batch_size=3)
        make_checkpoints(folder / "preprocessed")
    return folder


@pytest.fixture
def dataset(prepared, tmp_path, monkeypatch) -> PreprocessedDataset:
    """A copy of the prepared dataset."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    set_folders(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    return PreprocessedDataset.find(900, "nnUNetPlans", "3d_fullres")


def checkpoint(dataset: PreprocessedDataset, trainer: str = "AnatomicalEmbeddingTrainer") -> Path:
    results = Path(dataset.base).parents[1] / "results" / dataset.name
    return results / f"{trainer}__nnUNetPlans__3d_fullres" / "fold_all" / "checkpoint_final.pth"


def truth_errors_mm(matcher: EmbeddingMatcher) -> np.ndarray:
    """Errors of body points between all pairs of phantoms."""
    rng = np.random.default_rng(0)
    subjects = [make_subject(seed) for seed in range(CASES)]
    scans = [render(subject, SPACING_MM) for subject in subjects]
    errors = []
    for a in range(CASES):
        for b in set(range(CASES)) - {a}:
            points = matcher.body_points(f"case{a}", 40, rng)
            there_mm = corresponding_point(points * SPACING_MM + scans[a].origin_mm, subjects[a], subjects[b])
            truth = (there_mm - scans[b].origin_mm) / SPACING_MM
            shown = ((truth >= 0) & (truth <= np.array(scans[b].image.shape) - 1)).all(axis=1)
            found = matcher.match(f"case{a}", f"case{b}", points).points_vox
            errors.append(np.linalg.norm((found - truth) * SPACING_MM, axis=1)[shown])
    return np.concatenate(errors)


def test_a_short_training_clearly_beats_the_untrained_network(dataset):
    median = {}
    for name in ("AnatomicalEmbeddingTrainer_untrained", "AnatomicalEmbeddingTrainer"):
        report = index_dataset(dataset, checkpoint(dataset, name), torch.device("cpu"))
        assert report.outcomes.done == CASES and not report.outcomes.failed
        median[name] = np.median(truth_errors_mm(EmbeddingMatcher(dataset)))
    assert median["AnatomicalEmbeddingTrainer"] < 0.7 * median["AnatomicalEmbeddingTrainer_untrained"], median


def test_the_command_indexes_everything_says_so_and_goes_on_where_it_stopped(dataset, capsys):
    assert main([*COMMAND, "-device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "4 of 4 cases indexed (4 now, 0 before), 0 failed" in shown and "came back" in shown
    assert str(checkpoint(dataset)) in shown and "AliceTrainer -p nnUNetPlans" in shown
    store = IndexStore(dataset)
    before = {case: store.file(case).stat().st_mtime_ns for case in store.cases()}
    assert len(before) == CASES

    truncated = store.file("case1")
    truncated.write_bytes(truncated.read_bytes()[:5000])
    store.file("case2").unlink()
    assert main([*COMMAND, "-device", "cpu"]) == 0
    assert "4 of 4 cases indexed (2 now, 2 before), 0 failed" in capsys.readouterr().out
    after = {case: store.file(case).stat().st_mtime_ns for case in store.cases()}
    assert {case for case in after if after[case] != before.get(case)} == {"case1", "case2"}

    matcher = open_matcher(dataset)
    assert matcher.name == "embedding"
    assert matcher.threshold == read_calibration(store, matcher.fingerprint.checkpoint).threshold
    assert main(["match", "-d", "900", "--from", "case0", "--point", "20", "9", "12", "--to", "case1"]) in (0, 1)


def test_parts_index_all_cases_and_a_last_run_measures_trust(dataset):
    for number in (1, 2):
        report = index_dataset(dataset, device=torch.device("cpu"), part=Part(number, 2))
        assert report.outcomes.done == CASES // 2 and report.calibration is None
    report = index_dataset(dataset, device=torch.device("cpu"))
    assert len(report.outcomes.kept) == CASES and report.calibration is not None


def test_a_damaged_index_does_not_keep_the_others_from_being_finished(dataset):
    index_dataset(dataset, device=torch.device("cpu"))
    store = IndexStore(dataset)
    store.calibration_file.unlink()
    with np.load(store.file("case1")) as file:
        content = dict(file)
    content["fine"] = content["fine"][:-1]  # whole as a file, and usable by all that is not its content
    np.savez(store.file("case1"), **content)
    report = index_dataset(dataset, device=torch.device("cpu"))
    failed = report.outcomes.failed
    assert list(failed) == ["case1"] and "is damaged" in failed["case1"] and report.calibration is not None
    assert store.calibration_file.is_file() and not store.file("case1").exists()
    again = index_dataset(dataset, device=torch.device("cpu")).outcomes
    assert again.results.keys() - set(again.kept) == {"case1"}


def test_a_failure_here_leaves_what_another_machine_indexed_meanwhile(dataset, monkeypatch):
    import nnunet_alice.matching.index_dataset as module

    real, store = module.index_case, IndexStore(dataset)

    def meet(describer, dataset, case, *options):
        if case == "case1":
            monkeypatch.setattr(module, "index_case", real)
            index_dataset(dataset, device=torch.device("cpu"))
            raise MemoryError("too little")
        return real(describer, dataset, case, *options)

    monkeypatch.setattr(module, "index_case", meet)
    assert not index_dataset(dataset, device=torch.device("cpu")).outcomes.failed
    assert store.file("case1").is_file() and len(EmbeddingMatcher(dataset).cases) == CASES


def test_a_case_matched_to_itself_returns_the_point_within_a_grid_step(dataset):
    index_dataset(dataset, device=torch.device("cpu"))
    matcher = EmbeddingMatcher(dataset)
    points = matcher.search("case0").index.grid.points_vox
    matches = matcher.match("case0", "case0", points)
    off_mm = np.abs(matches.points_vox - points) * SPACING_MM
    step_mm = np.array(matcher.search("case0").index.grid.step_vox) * SPACING_MM
    assert (off_mm <= step_mm).all(axis=1).mean() > 0.99
    assert np.median(matches.scores) > 0.99


def test_another_checkpoint_replaces_the_indices_and_what_was_measured(dataset):
    index_dataset(dataset, device=torch.device("cpu"))
    store = IndexStore(dataset)
    first = store.fingerprint().checkpoint
    report = index_dataset(dataset, checkpoint(dataset, "AnatomicalEmbeddingTrainer_untrained"), torch.device("cpu"))
    assert report.outcomes.done == CASES
    second = store.fingerprint().checkpoint
    assert second != first
    assert read_calibration(store, first) is None and read_calibration(store, second) == report.calibration


def test_a_bad_case_is_named_and_does_not_stop_the_others(dataset, capsys):
    (dataset.folder / "case3.b2nd").write_bytes(b"no image")
    assert main([*COMMAND, "-device", "cpu"]) == SOME_FAILED
    shown = capsys.readouterr().out
    assert "3 of 4 cases indexed (3 now, 0 before), 1 failed" in shown and "failed: case3" in shown
    assert IndexStore(dataset).cases() == ["case0", "case1", "case2"]


def test_without_a_checkpoint_the_training_command_is_named(dataset, capsys):
    shutil.rmtree(checkpoint(dataset).parents[2])
    assert main(COMMAND) == 1
    expected = "nnUNetv2_train 900 3d_fullres all -tr AnatomicalEmbeddingTrainer -p nnUNetPlans"
    assert expected in capsys.readouterr().err
    with pytest.raises(NotPreparedError):
        default_checkpoint(dataset)


def test_the_trainer_itself_comes_before_its_variants(dataset):
    assert default_checkpoint(dataset) == checkpoint(dataset)
    checkpoint(dataset).unlink()
    assert default_checkpoint(dataset) == checkpoint(dataset, "AnatomicalEmbeddingTrainer_untrained")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (lambda saved: saved["pretraining"].update(method="Alice"), "trained with Alice"),
        (lambda saved: saved.pop("pretraining"), "no pretraining checkpoint of this package"),
        (
            lambda saved: saved["pretraining"]["plans"]["configurations"]["3d_fullres"].update(spacing=[3.0] * 3),
            "spacing",
        ),
        (
            lambda saved: saved["pretraining"]["plans"]["configurations"]["3d_fullres"].update(
                normalization_schemes=["ZScoreNormalization"]
            ),
            "normalisation",
        ),
        (lambda saved: saved["model_state"].pop("heads.fine.weight"), "heads"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(dataset, tmp_path, change, value):
    saved = torch.load(checkpoint(dataset), weights_only=True)
    change(saved)
    torch.save(saved, tmp_path / "changed.pth")
    with refused(CheckpointError, path="changed.pth", value=value):
        index_dataset(dataset, tmp_path / "changed.pth", torch.device("cpu"))
    assert not IndexStore(dataset).cases()
