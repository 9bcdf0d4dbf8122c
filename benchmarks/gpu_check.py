"""Do all trainers work on this GPU? Half precision, speed against stock nnU-Net, memory, waits, graphs: one table.

    python benchmarks/gpu_check.py                                # every trainer: a few minutes on one GPU
    python benchmarks/gpu_check.py --compile --only Alice DrasCLR   # as nnU-Net compiles by default
    python benchmarks/gpu_check.py -device cpu --size tiny        # tries the script itself
    python benchmarks/gpu_check.py --data DIR --prepare           # elsewhere: writes and registers the data

Needs nothing but this package: trains on small phantoms with the network of nnU-Net's own plans (6 stages, 128^3).
Rows that do not fit into --budget seconds are named and left out. A row says "ok" where losses are finite
and at most 10 steps are skipped. Half precision is within 1 % of single precision on the same batch, memory within the
plan. Waits for the GPU and compiled graphs are no more than recorded below (tests/audit holds the same numbers).
"""

import argparse
import copy
import importlib
import json
import math
import os
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

SIZES = {  # patch, features, convolutions a stage, voxel size of the phantoms in mm
    "full": ((128, 128, 128), (32, 64, 128, 256, 320, 320), 2, 3.0),
    "tiny": ((32, 32, 32), (4, 6, 8, 10), 1, 10.0),
}
PLAIN, LOCATED = "Dataset900_Check", "Dataset901_CheckLocated"
PLANS, CONFIGURATION = "nnUNetPlans", "3d_fullres"
#: Half precision may change the loss of a batch by this share, and so many steps may be lost in finding a scale.
TOLERANCE, MAX_SKIPPED = 0.01, 10


@dataclass(frozen=True)
class Row:
    """A trainer, and what is known of its step.

    Attributes:
        name: in the table.
        trainer: ``module.Class`` in nnunet_alice.trainers; stock nnU-Net's without a module.
        waits: how often a step waits for the device.
        graphs: compiled graphs of a training step.
        breaks: places where torch.compile leaves a graph for Python.
        dataset: what it trains on.
    """

    name: str
    trainer: str
    waits: int = 2
    graphs: int = 0
    breaks: int = 0
    dataset: str = PLAIN

    @property
    def pretrains(self) -> bool:
        """Whether it is one of the pretraining trainers."""
        return self.trainer.split(".")[0] in ("alice", "drasclr", "anatomical_embedding")


ROWS = (
    Row("stock nnU-Net", "nnUNetTrainer", graphs=3),
    Row("Alice", "alice.AliceTrainer", graphs=2),
    Row("Alice noCASA", "alice.AliceTrainer_noCASA", graphs=2),
    Row("Alice noContrast", "alice.AliceTrainer_noContrast", graphs=1),
    Row("Alice noReconstruction", "alice.AliceTrainer_noReconstruction", graphs=2),
    Row("Alice sameVolume", "alice.AliceTrainer_sameVolume", graphs=2),
    Row("Alice paper", "alice.AliceTrainer_paper", graphs=2),
    Row("DrasCLR", "drasclr.DrasCLRTrainer", waits=3, graphs=5, breaks=2),
    Row("DrasCLR noLocation", "drasclr.DrasCLRTrainer_noLocation", waits=3, graphs=5, breaks=2),
    Row("DrasCLR noRegional", "drasclr.DrasCLRTrainer_noRegional", waits=3, graphs=5, breaks=2),
    Row("Embedding", "anatomical_embedding.AnatomicalEmbeddingTrainer", graphs=1),
    Row("FineTune", "finetuning.FineTuneTrainer_scratch", graphs=3),
    Row("FineTune AdamW", "finetuning.FineTuneTrainer_scratch_AdamW", graphs=3),
    Row("FineTune decoderFirst", "finetuning.FineTuneTrainer_decoderFirst", graphs=3),
    Row("FineTune layerDecay", "finetuning.FineTuneTrainer_layerDecay", graphs=3),
    Row("DrasCLRFineTune", "drasclr_finetuning.DrasCLRFineTuneTrainer_scratch", dataset=LOCATED, graphs=3),
)


@dataclass
class Result:
    """A line of the table; None where nothing was measured."""

    name: str
    verdict: str = "?"
    images: int | None = None
    step_ms: float | None = None
    ratio: float | None = None
    gib: float | None = None
    planned_gib: float | None = None
    scale: float | None = None
    skipped: int | None = None
    loss_single: float | None = None
    loss_half: float | None = None
    waits: int | None = None
    graphs: int | None = None
    breaks: int | None = None
    first_step_s: float | None = None
    losses: list[float] = field(default_factory=list)


COLUMNS = {
    "name": ("trainer", "s"), "images": ("images", "d"), "step_ms": ("ms/step", ".0f"),
    "ratio": ("x stock/image", ".2f"), "gib": ("GiB", ".1f"), "planned_gib": ("planned", ".1f"),
    "scale": ("scale", ".0f"), "skipped": ("skipped", "d"),
    "loss_single": ("loss fp32", ".4f"), "loss_half": ("loss fp16", ".4f"), "waits": ("waits", "d"),
    "graphs": ("graphs", "d"), "breaks": ("breaks", "d"), "first_step_s": ("first step s", ".1f"),
    "verdict": ("verdict", "s"),
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Print the table; the exit status is 1 where a row is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--size", default="full", choices=SIZES)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="beginnings of the rows' names")
    parser.add_argument("--compile", action="store_true", help="as nnU-Net does on CUDA; else eager")
    parser.add_argument("--steps", type=int, default=8, help="timed steps a row (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=220, help="seconds; no row starts after (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="folder of the data, kept; made where missing")
    parser.add_argument("--prepare", action="store_true", help="write the data, register it, and stop")
    parser.add_argument("-o", type=Path, metavar="FILE", help="JSON of all figures")
    args = parser.parse_args(argv)
    started = time.monotonic()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        _set_up(args, Path(folder))
        if args.prepare:
            return 0
        print(_environment(args), flush=True)
        results: list[Result] = []
        for row in (row for row in ROWS if not args.only or row.name.startswith(("stock", *args.only))):
            if time.monotonic() - started > args.budget:
                results.append(Result(row.name, "left out: no time"))
                continue
            results.append(check(row, args))
            print(f"  {row.name}: {results[-1].verdict} ({time.monotonic() - started:.0f} s)", flush=True)
    compare_with_stock(results)
    print(table(results))
    if args.o:
        args.o.write_text(json.dumps([asdict(result) for result in results], indent=1))
    print("Please send this table and the line above it to the maintainers, as an issue: your GPU may be new to us.")
    return int(any(not result.verdict.startswith(("ok", "left out")) for result in results))


def _set_up(args: argparse.Namespace, temporary: Path) -> None:
    """Set nnU-Net's folders and settings; make data, registered, where there is none."""
    data = (args.data or temporary).resolve()
    for name, base in (("raw", data), ("preprocessed", data), ("results", temporary)):
        os.environ[f"nnUNet_{name}"] = str(base / name)
        (base / name).mkdir(parents=True, exist_ok=True)
    os.environ |= {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "2", "MPLBACKEND": "Agg"}
    os.environ["nnUNet_compile"] = "t" if args.compile else "f"
    import torch

    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True  # as nnUNetv2_train sets it
    if (data / "preprocessed" / LOCATED).is_dir():
        return
    write_data(data / "preprocessed", *SIZES[args.size])
    from nnunet_alice.anatomy.atlas import prepare_atlas
    from nnunet_alice.dataset import PreprocessedDataset

    prepare_atlas(PreprocessedDataset.find(PLAIN, PLANS, CONFIGURATION), 1)


def _environment(args: argparse.Namespace) -> str:
    import torch

    from nnunet_alice import __version__

    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    mode = "torch.compile" if args.compile else "eager"
    return f"{device}, torch {torch.__version__}, nnunet_alice {__version__}, {mode}, {args.size}"


# ------------------------------------------------------------------------------------------------------- one row


def check(row: Row, args: argparse.Namespace) -> Result:
    """Measure one trainer; a failure is a line of the table, too."""
    import torch

    result = Result(row.name)
    cuda = args.device == "cuda"
    try:
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        trainer = make_trainer(row, torch.device(args.device), args.compile)
        trainer.initialize()
        trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
        if row.pretrains:
            trainer.method.before_training()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        batches = [next(trainer.dataloader_train) for _ in range(2)]
        result.images = len(batches[0].views if row.pretrains else batches[0]["data"])
        if row.pretrains:
            with torch.compiler.set_stance("force_eager"):
                result.loss_single, result.loss_half = (
                    loss_of_batch(trainer, batches[0], half) for half in (False, True)
                )
        begin = time.perf_counter()
        made = [step(trainer, batches[0])]
        result.first_step_s = time.perf_counter() - begin
        made += [
            step(trainer, batches[number % 2]) for number in range(1, 10 if cuda else 2)
        ]  # finds kernels and scale
        graphs = dict(torch._dynamo.utils.counters["stats"]).get("unique_graphs", 0)
        result.waits = waits_of_a_step(trainer, batches[0]) if cuda else None
        seconds = []
        for number in range(args.steps if cuda else 1):
            begin = _now(cuda)
            made.append(step(trainer, batches[number % 2]))
            seconds.append(_now(cuda) - begin)
        result.step_ms = 1e3 * sorted(seconds)[len(seconds) // 2]
        result.losses = [loss for loss, _ in made]
        result.skipped = sum(skipped for _, skipped in made)
        if trainer.grad_scaler is not None and trainer.grad_scaler.is_enabled():
            result.scale = trainer.grad_scaler.get_scale()
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if args.compile else nullcontext():
            trainer.on_validation_epoch_start()
            trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val)) for _ in range(2)])
        if cuda:
            result.gib = torch.cuda.max_memory_allocated() / 2**30
        result.planned_gib = planned_gib(trainer) if row.pretrains else None
        result.graphs, result.breaks = graphs, sum(torch._dynamo.utils.counters["graph_break"].values())
        result.verdict = verdict(row, result)
    except Exception as error:
        lines = str(error).splitlines() or [""]
        result.verdict = f"FAILS: {type(error).__name__}: {lines[0][:150]}"
        traceback.print_exc()
    return result


def make_trainer(row: Row, device, compiled: bool = False):
    """Return the trainer of a row on the data of :func:`write_data`, silent."""
    module, _, name = row.trainer.rpartition(".")
    if module:
        found = getattr(importlib.import_module(f"nnunet_alice.trainers.{module}"), name)
    else:
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        found = nnUNetTrainer
    base = Path(os.environ["nnUNet_preprocessed"]) / row.dataset
    plans, dataset = (json.loads((base / f"{file}.json").read_text()) for file in (PLANS, "dataset"))
    trainer = found(plans | {"continue_training": False}, CONFIGURATION, "all", dataset, device)
    trainer.print_to_log_file = lambda *text, **options: None
    if compiled:
        trainer._do_i_compile = lambda: True
    return trainer


def step(trainer, batch) -> tuple[float, bool]:
    """Return the loss of a training step (NaN where it is not known), and whether it was skipped."""
    scale = trainer.grad_scaler.get_scale() if trainer.grad_scaler is not None else 1.0
    output = trainer.train_step(copy.copy(batch))
    if "metrics" in output:
        return float(output["metrics"]["loss"]) if output["metrics"] else math.nan, bool(output["skipped"])
    after = trainer.grad_scaler.get_scale() if trainer.grad_scaler is not None else 1.0
    return float(output["loss"]), after < scale


def loss_of_batch(trainer, batch, half: bool) -> float:
    """Return the loss of one batch in evaluation mode, in the trainer's precision or in single precision."""
    import torch

    trainer.model.eval()
    with torch.no_grad(), trainer.autocast() if half else torch.autocast(trainer.device.type, enabled=False):
        loss = float(trainer.method.compute(batch.to(trainer.device), trainer.progress, training=False).loss)
    trainer.model.train()
    return loss


def waits_of_a_step(trainer, batch) -> int:
    """Count how often a step waits for the GPU, as torch counts it."""
    import torch

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train_step(copy.copy(batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _now(cuda: bool) -> float:
    import torch

    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def planned_gib(trainer) -> float:
    """Live GiB that the plans foresee for a step."""
    from nnunet_alice.planning.memory import live_bytes_of_pairs, network_cost

    plan = trainer.configuration_manager
    cost = network_cost(plan.configuration["architecture"], plan.patch_size, trainer.num_input_channels, 2)
    return live_bytes_of_pairs(cost, plan.batch_size) / 2**30


def verdict(row: Row, result: Result) -> str:
    """Return what is wrong with a row, or ``ok``."""
    wrong = []
    if not all(map(math.isfinite, result.losses)):
        wrong.append("a loss is not finite")
    single, half = result.loss_single, result.loss_half
    if single is not None and half is not None and abs(half / single - 1) > TOLERANCE:
        wrong.append(f"half precision {half:.4g}, single {single:.4g}")
    if result.skipped is not None and result.skipped > MAX_SKIPPED:
        wrong.append(f"{result.skipped} steps skipped")
    if result.waits is not None and result.waits > row.waits:
        wrong.append(f"{result.waits} waits a step instead of {row.waits}")
    if result.gib is not None and result.planned_gib is not None and result.gib > 1.1 * result.planned_gib:
        wrong.append(f"{result.gib:.1f} GiB where {result.planned_gib:.1f} are planned")
    if (result.breaks or 0) > row.breaks or (result.graphs and result.graphs > row.graphs):
        wrong.append(f"{result.graphs} graphs instead of {row.graphs}, {result.breaks} breaks")
    return "ok" if not wrong else "WRONG: " + "; ".join(wrong)


# ------------------------------------------------------------------------------------------------------ the table


def compare_with_stock(results: list[Result]) -> None:
    """Fill in the time an image, as a multiple of stock nnU-Net's."""
    stock = next((result for result in results if result.name.startswith("stock") and result.step_ms), None)
    for result in results:
        if stock and stock.step_ms and stock.images and result.step_ms and result.images:
            result.ratio = result.step_ms / result.images / (stock.step_ms / stock.images)


def table(results: list[Result]) -> str:
    """Return one line a trainer."""
    lines = [[title for title, _ in COLUMNS.values()]]
    for result in results:
        values = {key: getattr(result, key) for key in COLUMNS}
        lines.append(["-" if value is None else format(value, COLUMNS[key][1]) for key, value in values.items()])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


# ------------------------------------------------------------------------------------------------------- the data


def write_data(base: Path, patch, features, convolutions: int, spacing_mm: float) -> None:
    """Write four phantoms, preprocessed, with labels; and the same with coordinates behind the image."""
    import numpy as np

    from nnunet_alice.coordinates.located_dataset import LOCATED as RECORD
    from nnunet_alice.methods.drasclr import located
    from nnunet_alice.phantoms import make_subject, render

    plain, with_places = [], []
    for seed in range(4):
        image = (np.clip(render(make_subject(seed), spacing_mm).image, -1000, 600) + 200) / 400
        axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape), indexing="ij")
        plain.append(image[None].astype(np.float32))
        weights = located.location_weights(np.ones(image.shape, dtype=bool))
        places = [weights, *(located.encode_locations(axis, weights) for axis in axes)]
        with_places.append(np.concatenate([plain[-1], np.stack(places)]).astype(np.float32))
    size = (patch, features, convolutions, spacing_mm)
    _write_dataset(base / PLAIN, plain, *size, {})
    _write_dataset(base / LOCATED, with_places, *size, {RECORD: {"atlas": ""}})


def _write_dataset(folder: Path, images, patch, features, convolutions: int, spacing_mm: float, more: dict) -> None:
    import numpy as np
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    cases = folder / f"{PLANS}_{CONFIGURATION}"
    cases.mkdir(parents=True)
    stages, channels = len(features), len(images[0])
    configuration = {
        "data_identifier": cases.name,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "median_image_size_in_voxels": [float(n) for n in images[0].shape[1:]],
        "spacing": [spacing_mm] * 3,
        "normalization_schemes": ["CTNormalization"] + ["NoNormalization"] * (channels - 1),
        "use_mask_for_norm": [False] * channels,
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(features),
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * stages,
                "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
                "n_conv_per_stage": [convolutions] * stages,
                "n_conv_per_stage_decoder": [convolutions] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    plans = {
        "dataset_name": folder.name,
        "plans_name": PLANS,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": {CONFIGURATION: configuration},
    }
    dataset = {
        "channel_names": {str(n): "CT" if n == 0 else "noNorm" for n in range(channels)},
        "labels": {"background": 0, "body": 1},
        "numTraining": len(images),
        "file_ending": ".nii.gz",
    } | more
    for name, content in ((PLANS, plans), ("dataset", dataset), ("dataset_fingerprint", {})):
        (folder / f"{name}.json").write_text(json.dumps(content))
    for number, image in enumerate(images):
        labels = (image[:1] > 0.4).astype(np.int16)
        where = np.argwhere(labels == 1)[:: max(1, int(labels.sum()) // 1000)]
        sizes = [comp_blosc2_params(array.shape, tuple(patch), array.itemsize) for array in (image, labels)]
        nnUNetDatasetBlosc2.save_case(
            image, labels, {"spacing": [spacing_mm] * 3, "class_locations": {1: where}}, str(cases / f"case{number}"),
            chunks=sizes[0][1], blocks=sizes[0][0], chunks_seg=sizes[1][1], blocks_seg=sizes[1][0],
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
