"""Does Alice live? Trains forms of it on phantoms and measures retrieval on held-out cases, beside what it has to beat.

    python benchmarks/alice_collapse.py -o DIR --contrast random --trainers AliceTrainer AliceTrainer_noContrast

Makes phantoms of differing people twice: CT-like, and with a tone curve of its own for each (random contrast, as if
every scan came from another MR sequence; raw intensities then say little). Imports, plans and registers them with the
public commands. Trains every form on the same training cases with the same matches (the atlas of the CT-like volumes).
The question on the held-out cases: among the anchor views of 32 draws, does a query view find the anchor of the same
anatomy? Prints one row a form: retrieval, entropies, spread, token-index information, reconstruction. Running it again
trains only what is missing, and continues what was interrupted.
"""

import argparse
import functools
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from folders import set_folders
from torch import nn
from torch.nn import functional

from nnunet_alice.cli.main import main as command
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.files import read_json, write_json
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.methods.alice.head import view_descriptors
from nnunet_alice.methods.diagnostics import retrieval_accuracy
from nnunet_alice.methods.intermediate_features import IntermediateFeatures
from nnunet_alice.phantoms import make_population, write_subjects
from nnunet_alice.pretraining.alice import AliceMethod
from nnunet_alice.trainers import alice
from nnunet_alice.training.settings import changed, has_setting

CT, RANDOM = 900, 901
PLANS = "AliceSmallPlans"
CANDIDATES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", required=True, type=Path, help="folder for everything")
    parser.add_argument("--contrast", choices=["ct", "random"], default="ct")
    parser.add_argument("--trainers", nargs="+", default=["AliceTrainer", "AliceTrainer_noContrast"])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of Alice to change")
    parser.add_argument("--name", default="", help="added to the trainers' names when --set is used")
    parser.add_argument("--cases", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=50, help="an epoch")
    parser.add_argument("--pairs", type=int, default=12, help="a step")
    parser.add_argument("--patch", type=int, default=16, help="voxels a side, at 6 mm")
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--draws", type=int, default=20, help=f"sets of {CANDIDATES} pairs for the final retrieval")
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_folders(args.o)
    os.environ["nnUNet_n_proc_DA"] = "0"

    datasets = prepare(args.o, args.cases)
    dataset = datasets[args.contrast]
    rows = {}
    for name in args.trainers:
        trainer = make_trainer(name, args, dataset, AtlasMatcher(datasets["ct"]))
        final, latest = (Path(trainer.output_folder) / f"checkpoint_{which}.pth" for which in ("final", "latest"))
        if not final.is_file():
            if latest.is_file():
                trainer.load_checkpoint(str(latest))
            trainer.run_training()
        checkpoint = torch.load(final, weights_only=True)
        trainer.initialize() if not trainer.was_initialized else None
        rows[name + args.name] = summary(checkpoint, trainer, dataset, args)
    rows |= baselines(trainer, dataset, args)
    table = pd.DataFrame(rows).T
    table.to_csv(args.o / f"retrieval_{args.contrast}{args.name}.csv")
    print(table.to_string(float_format="{:.3f}".format, na_rep="-"))
    print(f"chance: top-1 {1 / CANDIDATES:.3f}, top-5 {5 / CANDIDATES:.3f}")


def prepare(folder: Path, cases: int) -> dict[str, PreprocessedDataset]:
    """Import, plan and preprocess both datasets; register the CT-like one to an atlas."""
    ct, random = folder / "ct", folder / "random"
    if not (ct / "truth.json").is_file():
        write_subjects(
            ct,
            make_population(range(cases), cut_share=0),
            spacing_mm=6.0,
            images_folder=".",
            labels_folder=None,
            num_processes=os.cpu_count() or 1,
        )
    random.mkdir(exist_ok=True)
    for path in sorted(ct.glob("*.nii.gz")):
        if not (random / path.name).is_file():
            sitk.WriteImage(with_tone_curve(sitk.ReadImage(str(path)), int(path.name[7:12])), str(random / path.name))
    datasets = {}
    for name, number, channel in (("ct", CT, "CT"), ("random", RANDOM, "MRI")):
        done = Path(os.environ["nnUNet_preprocessed"]) / f"Dataset{number}_{name}" / f"{PLANS}.json"
        if not done.is_file():
            command(
                ["import", "-i", str(folder / name), "-d", str(number), "-n", name, "--channel", channel, "-np", "1"]
            )
            command(["plan", "-d", str(number), "-pl", "AlicePlannerSmall", "-np", "1"])
        datasets[name] = PreprocessedDataset.find(number, PLANS, "3d_fullres")
        keys = datasets[name].cases()
        cut = round(0.7 * len(keys))
        write_json(datasets[name].base / "splits_final.json", [{"train": keys[:cut], "val": keys[cut:]}])
    command(["anatomy", "-d", str(CT), "-p", PLANS, "-c", "3d_fullres", "-np", str(os.cpu_count() or 1)])
    if datasets["ct"].cases() != datasets["random"].cases() or any(
        datasets["ct"].shape(case) != datasets["random"].shape(case) for case in datasets["ct"].cases()
    ):
        raise SystemExit("The two datasets differ in cases or shapes; delete the folder and start again.")
    return datasets


def with_tone_curve(image: sitk.Image, seed: int) -> sitk.Image:
    """Return the volume through a random tone curve, not even monotone; nowhere 0, so that nothing is cropped."""
    rng = np.random.default_rng([seed, 1])
    knots = [-1000, -400, -120, -60, 0, 40, 80, 160, 300, 600]
    values = np.concatenate([[0.0], rng.uniform(0, 1, len(knots) - 1)])
    curved = sitk.GetImageFromArray(
        (100 + 1000 * np.interp(sitk.GetArrayViewFromImage(image), knots, values)).astype("int16")
    )
    curved.CopyInformation(image)
    return curved


def make_trainer(name: str, args: argparse.Namespace, dataset: PreprocessedDataset, matcher: AtlasMatcher):
    """Return the trainer of a short run, with the same matches whatever the contrast."""
    base = getattr(alice, name)
    changes = {key: json.loads(value) for key, value in (word.split("=", 1) for word in args.set)}
    unknown = [key for key in changes if not has_setting(base.settings, f"method.{key}")]
    if unknown:
        raise SystemExit(f"Alice has no setting {', '.join(unknown)}.")
    own = {"run.epochs": args.epochs, "run.iterations": args.iterations, "run.seed": args.seed}
    settings = changed(base.settings, own | {f"method.{key}": value for key, value in changes.items()})
    configuration = {**dataset.plans["configurations"]["3d_fullres"], "batch_size": args.pairs}
    configuration["patch_size"] = [args.patch] * 3
    plans = {**dataset.plans, "configurations": {"3d_fullres": configuration}, "continue_training": False}
    method_class = functools.partial(AliceMethod, matcher=matcher)
    own = {"settings": settings, "method_class": staticmethod(method_class)}
    trainer_class = type(f"{name}{args.name}_seed{args.seed}", (base,), own)
    return trainer_class(plans, "3d_fullres", 0, read_json(dataset.base / "dataset.json"), torch.device("cpu"))


def summary(checkpoint: dict, trainer, dataset: PreprocessedDataset, args: argparse.Namespace) -> dict[str, float]:
    """Return retrieval of the trained network (the teacher's where there is one), and its collapse diagnostics."""
    prefix = "teacher.backbone.network."
    state = {key[len(prefix) :]: value for key, value in checkpoint["model_state"].items() if key.startswith(prefix)}
    trainer.network.load_state_dict(state or checkpoint["network_weights"])
    last = checkpoint["history"][-1]
    names = ("conditional_entropy_cls", "conditional_entropy_align", "token_index_information")
    spreads = [row["spread"] for row in checkpoint["history"] if "spread" in row]
    return {
        **retrieval(network_descriptors(trainer.network), trainer, args),
        "reconstruction": last["val_loss_reconstruction"],
        **{name: last[name] for name in names if name in last},
        **({"smallest spread": min(spreads), "last spread": spreads[-1]} if spreads else {}),
    }


def baselines(trainer, dataset: PreprocessedDataset, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return an untrained network of the same kind, and raw pixels averaged over 4 x 4 x 4 parts."""
    torch.manual_seed(args.seed)
    untrained = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 1, enable_deep_supervision=False
    )
    return {
        "untrained": retrieval(network_descriptors(untrained), trainer, args),
        "raw pixels": retrieval(lambda views: functional.adaptive_avg_pool3d(views, 4).flatten(1), trainer, args),
    }


def network_descriptors(network: nn.Module):
    """Describe views by a network's bottleneck."""
    tapped = IntermediateFeatures(network).eval()

    def describe(views: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return view_descriptors(tapped(views, 0).bottleneck)

    return describe


def retrieval(describe, trainer, args: argparse.Namespace) -> dict[str, float]:
    """Return the mean retrieval over sets of pairs from held-out cases; the same pairs for everyone."""
    batches = trainer.method.batches(trainer.do_split()[1], training=False)
    batches.batch_size = CANDIDATES
    hits = []
    for number in range(args.draws):
        views = batches(number, np.random.default_rng([99, number])).views
        descriptors = describe(views)
        hits.append(retrieval_accuracy(descriptors[:CANDIDATES], descriptors[CANDIDATES:]))
    return {f"top-{k}": float(np.mean([hit[k] for hit in hits])) for k in (1, 5)}


if __name__ == "__main__":
    main()
