"""What a step of AliceTrainer costs beside the bare network passes, and whether the loader keeps up.

    python benchmarks/alice_step.py -d 900 -p AlicePlans -c 3d_fullres --pairs 2 --repeats 5

Where ``nnunet_alice plan --probe`` kept labelled crops, the online probe is timed in the same turns. Its share of a run
with the default settings is printed.

Needs a preprocessed dataset with nnU-Net's folders set. All passes of a comparison alternate within one run, so that
a noisy machine disturbs both alike; medians are compared, on the CPU of processor time. Data loading is left out of
the steps and timed on its own, in one process.
"""

import argparse
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import cast

import numpy as np
import torch

from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.files import read_json
from nnunet_alice.methods.alice.model import Alice
from nnunet_alice.pretraining.online_probe import open_probe
from nnunet_alice.trainers.alice import AliceTrainer
from nnunet_alice.training.settings import changed
from nnunet_alice.views.matched_views import AliceBatch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True)
    parser.add_argument("-p", default="nnUNetPlans")
    parser.add_argument("-c", default="3d_fullres")
    parser.add_argument("-device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--pairs", type=int, help="pairs of views a step [the plans']")
    parser.add_argument("--patch", type=int, nargs=3, help="patch in voxels [the plans']")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--masked_anchors", action="store_true", help="mask the anchor views, too")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["nnUNet_n_proc_DA"] = "0"

    trainer = make_trainer(args)
    trainer.initialize()
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    trainer.method.before_training()
    start = time.process_time()
    batches = [next(trainer.dataloader_train) for _ in range(max(2, args.repeats))]
    loading = (time.process_time() - start) / len(batches)

    passes: dict[str, Callable[[AliceBatch], object]] = {
        "bare: student forward + backward, teacher forward": lambda batch: bare_passes(trainer, batch, None),
        "barest: the same, teacher only as far as it is read": lambda batch: bare_passes(trainer, batch, 1),
        "AliceTrainer step": trainer.train_step,
    }
    probe = open_probe(trainer.network, trainer.dataset, trainer.device, True, print)
    if probe is not None:
        passes["online probe"] = lambda _: probe.measure(trainer.method.network_weights())
    seconds = measure(passes, batches, args.repeats, trainer.device)
    views = len(batches[0].views)
    step = seconds["AliceTrainer step"]
    print(
        f"{platform.processor() or platform.machine()}, {args.threads} thread(s), "
        f"torch {torch.__version__}, {trainer.device}"
    )
    patch = tuple(batches[0].views.shape[2:])
    print(f"patch {patch}, {views} views a step, whole anchors: {not args.masked_anchors}")
    for name, value in seconds.items():
        print(f"{value:9.3f} s  {name}  (step / this = {step / value:.3f})")
    print(f"loader alone: {views / loading:.2f} views/s in one process; network: {views / step:.2f} views/s;")
    print(f"loader / network = {step / loading:.1f}")
    if probe is not None:
        run = trainer.settings.run
        steps = run.probe_every * run.iterations
        share = seconds["online probe"] / (steps * step)
        print(f"online probe: {100 * share:.3f} % of the time of the {steps} steps between two")
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if trainer.device.type == "cuda":
        print(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


def make_trainer(args: argparse.Namespace) -> AliceTrainer:
    """Return the trainer on the plans, with another patch or batch if asked for."""
    dataset = PreprocessedDataset.find(args.d, args.p, args.c)
    plans = {**dataset.plans, "continue_training": False}
    changes = {"batch_size": args.pairs, "patch_size": args.patch}
    changes = {name: value for name, value in changes.items() if value is not None}
    configuration = {**plans["configurations"][args.c], **changes}
    plans["configurations"] = {**plans["configurations"], args.c: configuration}
    dataset_json = read_json(dataset.base / "dataset.json")
    settings = changed(AliceTrainer.settings, {"method.unmasked_anchors": not args.masked_anchors})
    trainer_class = type("AliceTrainer_step", (AliceTrainer,), {"settings": settings})
    return trainer_class(plans, args.c, "all", dataset_json, torch.device(args.device))


def bare_passes(trainer: AliceTrainer, batch: AliceBatch, teacher_stages: int | None) -> None:
    """Run the network passes that no implementation of Alice can avoid."""
    batch, model = batch.to(trainer.device), cast(Alice, trainer.model)
    views, mask = batch.views, batch.mask
    trainer.network.zero_grad(set_to_none=True)
    with trainer.autocast():
        output = model.student.backbone(views.masked_fill(mask.unsqueeze(1), 0)).output
        loss = 0.5 * (output.float() - views).square().mean()
    loss.backward()
    with torch.no_grad(), trainer.autocast():
        if model.teacher is not None:  # MIM has none
            model.teacher.backbone(views, teacher_stages)


def measure(passes: dict, batches: list[AliceBatch], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each pass, in turns; the first round warms up."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for repeat in range(repeats + 1):
        order = np.roll(list(passes), repeat)
        for name in order:
            start = clock()
            passes[name](batches[repeat % len(batches)])
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat > 0:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
