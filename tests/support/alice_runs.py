"""Short runs of AliceTrainer with a small head."""

from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.trainers import alice
from support.pretraining_runs import with_settings

SMALL = {"hidden_dim": 16, "bottleneck_dim": 8, "prototypes": 16, "attention_heads": 2, "retrieval_candidates": 4}


def variant(base=alice.AliceTrainer, name="AliceTrainer_test", **run):
    """A trainer with a small head and a short run."""
    own = {"run.epochs": 2, "run.iterations": 2} | {f"run.{key}": value for key, value in run.items()}
    return with_settings(base, own | {f"method.{key}": value for key, value in SMALL.items()}, name)


def opened_matcher(trainer):
    """The matcher that the trainer opens for its views."""
    if not trainer.was_initialized:
        trainer.initialize()
    trainer.get_dataloaders()
    return trainer.method.matcher


class LaterMatcher(AtlasMatcher):
    """Stands for an embedding."""

    name = "embedding"
