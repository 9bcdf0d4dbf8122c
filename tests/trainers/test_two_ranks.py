"""AliceTrainer on two real gloo processes with unequal batches, as nnU-Net deals out a batch that does not divide."""

import math
import re
from pathlib import Path

import pytest
import torch
from support.gloo_ranks import RANKS, needs_distributed, on_ranks
from support.pretraining_runs import DATASET, PLANS, make_trainer, phantom_images, training_log, write_run
from support.small_datasets import set_folders

from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.checkpoints.pretraining import read_for_resume
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.errors import InputError
from nnunet_alice.methods.distributed import rank
from nnunet_alice.pretraining.alice import AliceMethod
from nnunet_alice.trainers.alice import AliceTrainer
from nnunet_alice.training.devices import place
from nnunet_alice.training.settings import changed

PAIRS = 3

pytestmark = [needs_distributed, pytest.mark.slow]


class AliceTrainer_ranks(AliceTrainer):
    """A small head and a short run."""

    settings = changed(
        AliceTrainer.settings,
        {
            **{"run.epochs": 1, "run.iterations": 2, "method.retrieval_candidates": 4, "method.hidden_dim": 16},
            **{"method.bottleneck_dim": 8, "method.prototypes": 16, "method.attention_heads": 2},
        },
    )


class PoisonedMethod(AliceMethod):
    """Rank 1 alone meets a broken image, once."""

    def compute(self, batch, progress, training):
        """As ever, but for NaN."""
        if training and progress.step == 1 and rank() == 1:
            batch.views[:] = math.nan
        return super().compute(batch, progress, training)


class AliceTrainer_poisoned(AliceTrainer_ranks):
    """Three iterations with that image."""

    method_class = PoisonedMethod
    settings = changed(AliceTrainer_ranks.settings, {"run.iterations": 3})


def on_cpu(trainer_class, base):
    """A trainer of this rank, as ``nnunet_alice train -device cpu`` makes it."""
    trainer = make_trainer(trainer_class, base)
    place(trainer, torch.device("cpu"))
    return trainer


def a_whole_run(trainer_class, base):
    trainer = on_cpu(trainer_class, base)
    trainer.run_training()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    on_cpu(trainer_class, base).load_checkpoint(str(path))
    return {
        "own batch": trainer.batch_size,
        "validation iterations": trainer.num_val_iterations_per_epoch,
        "metrics": {name: trainer.history.rows[0][name] for name in ("loss", "val_loss", "retrieval_top1")},
        "weights": trainer.network.state_dict(),
    }


def message_about_few_pairs(base):
    trainer = on_cpu(AliceTrainer_ranks, base)
    trainer.configuration_manager.configuration["batch_size"] = 1
    with pytest.raises(InputError) as caught:
        trainer.initialize()
    return str(caught.value)


def runs_of(rank, base):
    runs = {kind.__name__: a_whole_run(kind, base) for kind in TRAINERS}
    return runs | {"more ranks than pairs": message_about_few_pairs(base)}


TRAINERS = (AliceTrainer_ranks, AliceTrainer_poisoned)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank saw, and the folder of the run."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, folder)
        write_run(folder / "preprocessed", phantom_images(3), batch_size=PAIRS)
        prepare_atlas(PreprocessedDataset.find(DATASET, PLANS, "3d_fullres"), 1)
        return folder, on_ranks(runs_of, folder, folder / "preprocessed")


@pytest.mark.parametrize("kind", [kind.__name__ for kind in TRAINERS])
def test_unequal_batches_validate_and_train_in_step(ranks, kind):
    results = [runs[kind] for runs in ranks[1]]
    assert [result["own batch"] for result in results] == [2, 1]
    assert [result["validation iterations"] for result in results] == [4, 4]
    assert results[0]["metrics"] == results[1]["metrics"]
    for name, weight in results[0]["weights"].items():
        assert torch.equal(weight, results[1]["weights"][name]) and weight.isfinite().all(), name


def test_a_bad_batch_of_one_rank_is_left_out_by_all_and_its_cases_are_named(ranks):
    folder, results = ranks
    assert all(math.isfinite(value) for runs in results for value in runs["AliceTrainer_poisoned"]["metrics"].values())
    log = training_log(next(folder.glob("results/**/AliceTrainer_poisoned*/fold_all")))
    assert len(re.findall(r"WARNING: the loss is not finite on the cases case\d", log)) == 1


def test_more_gpus_than_pairs_is_one_sentence(ranks):
    for runs in ranks[1]:
        message = runs["more ranks than pairs"]
        assert f"{PLANS}.json, 3d_fullres: batch_size 1 cannot be split among 2 GPUs" in message
        assert "train with -num_gpus 1, or plan with nnunet_alice plan ... -num_gpus 2." in message


def test_other_gpus_than_planned_are_warned_of(ranks):
    log = training_log(next(ranks[0].glob("results/**/AliceTrainer_ranks*/fold_all")))
    expected = "planned for 1 GPU(s) with 3 pairs each; this run has 2 with up to 2. Train with -num_gpus 1, or plan"
    assert f"WARNING: the batch was {expected}" in log


def test_the_batch_of_all_ranks_is_recorded(ranks):
    folder, _ = ranks
    path = next(folder.glob("results/**/AliceTrainer_ranks*/fold_all/checkpoint_final.pth"))
    content = torch.load(path, weights_only=True)
    run = content["pretraining"]
    assert run["hyper_parameters"]["batch_size"] == PAIRS and run["ranks"] == RANKS
    settings = run["hyper_parameters"]
    read_for_resume(path, "Alice", settings, content["network_weights"])
