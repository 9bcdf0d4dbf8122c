"""AliceTrainer on two real gloo processes with unequal batches, as nnU-Net deals out a batch that does not divide."""

from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pretraining_runs import DATASET, PLANS, make_trainer, phantom_images, write_run

from nnunet_alice.anatomy.atlas import prepare_atlas
from nnunet_alice.checkpoints.pretraining import read_for_resume
from nnunet_alice.nnunet_folders import PreprocessedDataset
from nnunet_alice.trainers.alice import AliceTrainer

RANKS, PAIRS = 2, 3

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no distributed support")


class AliceTrainer_ranks(AliceTrainer):
    """A small head and a short run."""

    epochs = 1
    iterations = 2
    retrieval_candidates = 4
    settings = replace(AliceTrainer.settings, hidden_dim=16, bottleneck_dim=8, prototypes=16, attention_heads=2)


def on_cpu(trainer_class, base):
    """A trainer of this rank; nnU-Net would give it a GPU."""
    trainer = make_trainer(trainer_class, base)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    return trainer


@contextmanager
def process_group(rank, folder, name):
    """Ranks that wait for each other in vain fail soon instead of after half an hour."""
    rendezvous = f"file://{folder}/{name}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    try:
        yield
    finally:
        dist.destroy_process_group()


def a_whole_run(base):
    trainer = on_cpu(AliceTrainer_ranks, base)
    trainer.run_training()
    path = Path(trainer.output_folder) / "checkpoint_final.pth"
    on_cpu(AliceTrainer_ranks, base).load_checkpoint(str(path))
    return {
        "own batch": trainer.batch_size,
        "validation iterations": trainer.num_val_iterations_per_epoch,
        "metrics": {name: trainer.history.rows[0][name] for name in ("loss", "val_loss", "retrieval_top1")},
        "weights": trainer.network.state_dict(),
    }


def rank_main(rank, folder):
    torch.set_num_threads(1)
    with process_group(rank, folder, "rendezvous"):
        torch.save(a_whole_run(folder / "preprocessed"), folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank saw, and the folder of the run."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            (folder / name).mkdir()
            patch.setenv(f"nnUNet_{name}", str(folder / name))
        patch.setenv("nnUNet_n_proc_DA", "0")
        write_run(folder / "preprocessed", phantom_images(3), batch_size=PAIRS)
        prepare_atlas(PreprocessedDataset.find(DATASET, PLANS, "3d_fullres"), 1)
        mp.spawn(rank_main, (folder,), nprocs=RANKS)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_unequal_batches_validate_and_train_in_step(ranks):
    _, results = ranks
    assert [result["own batch"] for result in results] == [2, 1]
    assert [result["validation iterations"] for result in results] == [4, 4]
    assert results[0]["metrics"] == results[1]["metrics"]
    for name, weight in results[0]["weights"].items():
        assert torch.equal(weight, results[1]["weights"][name]), name


def test_the_batch_of_all_ranks_is_recorded_and_what_older_versions_recorded_is_known(ranks):
    folder, _ = ranks
    path = next(folder.glob("results/**/checkpoint_final.pth"))
    content = torch.load(path, weights_only=True)
    run = content["pretraining"]
    assert run["hyper_parameters"]["batch_size"] == PAIRS and run["ranks"] == RANKS
    settings = run["hyper_parameters"]
    read_for_resume(path, "Alice", settings, content["network_weights"], (PAIRS,))
    del run["ranks"]
    run["hyper_parameters"] = settings | {"batch_size": 2}  # the first rank's
    older = path.with_name("older.pth")
    torch.save(content, older)
    read_for_resume(older, "Alice", settings, content["network_weights"], (2, 1))
