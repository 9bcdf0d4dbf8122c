"""Variants of trainers by the ending of their names."""

from types import ModuleType

import pytest

from nnunet_alice.trainers import alice
from nnunet_alice.training.variants import epochs_variant, with_learning_rate


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
    assert getattr(alice, with_learning_rate(name, 2.5e-6)).learning_rate == 2.5e-6


def variants_module():
    module = ModuleType("some_trainers")
    module.Trainer = type("Trainer", (), {"epochs": 1000, "__module__": "some_trainers"})
    module.Imported = type("Imported", (), {"epochs": 1000, "__module__": "elsewhere"})
    module.Other = type("Other", (), {"__module__": "some_trainers"})
    module.__getattr__ = lambda name: epochs_variant(name, vars(module))
    return module


def test_variants_are_found_as_nnunet_looks_for_them():
    module = variants_module()
    for name, epochs in (("Trainer_300epochs", 300), ("Trainer_1epoch", 1)):
        assert hasattr(module, name)
        variant = getattr(module, name)
        assert variant.__name__ == name and variant.epochs == epochs and issubclass(variant, module.Trainer)


@pytest.mark.parametrize(
    "name", ["Trainer_0epochs", "Missing_3epochs", "Imported_3epochs", "Other_3epochs", "Trainer_xepochs", "Nothing"]
)
def test_other_names_are_not_there(name):
    assert not hasattr(variants_module(), name)
