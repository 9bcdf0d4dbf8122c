"""Trainers by the endings of their names."""

from dataclasses import dataclass, field
from types import ModuleType

import pytest

from nnunet_alice.discovery import classes_in
from nnunet_alice.errors import InputError, UnknownTrainerError
from nnunet_alice.trainers import alice, anatomical_embedding, drasclr, drasclr_finetuning, finetuning
from nnunet_alice.training.settings import changed
from nnunet_alice.training.variants import ENDINGS, named_trainer, trainer_names, with_learning_rate


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AliceTrainer", "AliceTrainer_lr0.0001"),
        ("AliceTrainer_lr3e-3_30epochs", "AliceTrainer_30epochs_lr0.0001"),
        ("AliceTrainer_noCASA", "AliceTrainer_noCASA_lr0.0001"),
    ],
)
def test_a_trainer_of_another_rate_is_found_by_the_name_that_is_advised(name, expected):
    assert with_learning_rate(name, 1e-4) == expected
    found = getattr(alice, with_learning_rate(name, 2.5e-6))
    assert found.settings.optimisation.learning_rate == 2.5e-6


@dataclass(frozen=True)
class Run:
    epochs: int = 1000
    iterations: int = 250
    seed: int | None = None


@dataclass(frozen=True)
class Settings:
    run: Run = field(default_factory=Run)


@pytest.fixture
def module():
    """A module of trainers; what lies elsewhere or has no settings is none of them."""
    module = ModuleType("some_trainers")
    own = {"__module__": "some_trainers"}
    module.Trainer = type("Trainer", (), own | {"settings": Settings()})
    module.Trainer_small = type("Trainer_small", (module.Trainer,), own)
    module.Trainer_2epochs = type("Trainer_2epochs", (module.Trainer,), own)
    module.Imported = type("Imported", (), {"settings": Settings(), "__module__": "elsewhere"})
    module.Other = type("Other", (), own)
    module.__getattr__ = trainer_names(vars(module))
    return module


def test_endings_stand_in_any_order_and_change_their_settings_alone(module):
    for name in ("Trainer_small_16epochs_25iterations_seed2", "Trainer_small_seed2_25iterations_16epochs"):
        assert hasattr(module, name)  # as nnU-Net looks for them
        found = getattr(module, name)
        assert found.__name__ == name and issubclass(found, module.Trainer_small)
        assert found.settings == Settings(Run(16, 25, 2)) and module.Trainer.settings == Settings()
        assert found.__module__ == "some_trainers" and "16" in found.__doc__
    assert module.Trainer_1epoch.settings.run.epochs == 1
    assert module.Trainer_seed0.settings.run.seed == 0
    own = module.Trainer_2epochs_seed1
    assert issubclass(own, module.Trainer_2epochs), "a class may be named like an ending"
    assert own.settings == Settings(Run(seed=1))


@pytest.mark.parametrize("name", ["Missing_3epochs", "Imported_3epochs", "Other_3epochs", "Nothing", "__path__"])
def test_names_that_are_not_ours_are_plainly_not_there(module, name, caplog):
    assert not hasattr(module, name) and not caplog.records
    with pytest.raises(AttributeError) as caught:
        named_trainer(name, vars(module))
    assert not isinstance(caught.value, UnknownTrainerError)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("Trainer_30epocs", "<N>epochs"),
        ("Trainer_smal", "_small"),
        ("Trainer_smal_30epochs", "_small"),
        ("Trainer_xyz", "_seed<N>"),
        ("Trainer_4experts", "4experts"),
        ("Trainer_0epochs", "0epochs"),
        ("Trainer_3epochs_4epochs", "two endings"),
        ("Trainer_", "Trainer"),
    ],
)
def test_an_unknown_ending_gets_one_sentence_that_hasattr_takes_as_a_no(module, name, advice, caplog):
    assert not hasattr(module, name)
    (record,) = caplog.records
    with pytest.raises(UnknownTrainerError) as caught:
        getattr(module, name)
    assert isinstance(caught.value, InputError) and str(caught.value) == record.message
    assert advice in str(caught.value) and str(caught.value).startswith("Trainer")


@pytest.mark.parametrize(
    ("where", "name", "path", "value"),
    [
        (drasclr, "DrasCLRTrainer_4experts", "method.num_experts", 4),
        (drasclr, "DrasCLRTrainer_2experts", "method.num_experts", 2),
        (drasclr, "DrasCLRTrainer_noLocation_0neighbours", "method.neighbours", 0),
        (drasclr, "DrasCLRTrainer_temperature0.1", "method.temperature", 0.1),
        (drasclr, "DrasCLRTrainer_queue64", "method.queue_limit", 64),
        (drasclr_finetuning, "DrasCLRFineTuneTrainer_2experts", "method.num_experts", 2),
        (drasclr_finetuning, "DrasCLRFineTuneTrainer_scratch_noTTA", "validation.mirroring", False),
        (finetuning, "FineTuneTrainer_keep25-50", "validation.keep_at", (25, 50)),
        (finetuning, "FineTuneTrainer_scratch_AdamW", "optimisation.optimizer_name", "AdamW"),
        (anatomical_embedding, "AnatomicalEmbeddingTrainer_lr1e-2", "optimisation.learning_rate", 0.01),
        (alice, "AliceTrainer_paper_7iterations", "run.iterations", 7),
    ],
)
def test_what_is_promised_is_there(where, name, path, value):
    found = getattr(where, name)
    base = found.__mro__[1]
    assert found.settings == changed(base.settings, {path: value}) != base.settings


def test_every_ending_belongs_to_some_trainer():
    trainers = classes_in("nnunet_alice.trainers", object).values()
    trees = [repr(trainer.settings) for trainer in trainers if hasattr(trainer, "settings")]
    for ending in ENDINGS:
        assert any(f"{ending.path.rpartition('.')[2]}=" in tree for tree in trees), ending


@pytest.mark.parametrize("name", ["AliceTrainr", "alicetrainer", "AliceTrainr_100epochs_seed2", "AllceTrainer_noCASA"])
def test_a_misspelled_trainer_is_told_what_was_meant(name, caplog):
    assert not hasattr(alice, name)
    assert f"{name} is no trainer of nnunet_alice; did you mean AliceTrainer?" in caplog.text


def test_trainers_of_other_modules_are_no_misspellings(caplog):
    """nnU-Net asks every module for a name until one has it."""
    modules = alice, anatomical_embedding, drasclr, drasclr_finetuning, finetuning
    names = [name for module in modules for name, value in vars(module).items() if isinstance(value, type)]
    for name in [*names, "nnUNetTrainer", "nnUNetTrainer_100epochs"]:
        for module in modules:
            hasattr(module, f"{name}_7epochs")
    assert not [record for record in caplog.records if "did you mean" in record.message]
