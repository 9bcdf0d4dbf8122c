"""How far off are matches by the learned embedding, by the atlas and by relative position, where truth is known?

    python benchmarks/matching_evidence.py -o DIR --data mixed
    python benchmarks/matching_evidence.py -o DIR --data equal
    python benchmarks/matching_evidence.py -o DIR --data hippocampus -i Task04_Hippocampus

Makes phantoms of differing people, of mixed fields of view (two thirds of them cut at the chest or at the pelvis) or
all of the whole torso. Or takes real hippocampi, whose label centroids are measured. Imports, plans and registers them
with the public commands; trains ``AnatomicalEmbeddingTrainer`` on three quarters of them and indexes the others. Prints
for ordered pairs of these: the error in mm of each method; which share of Alice's views is accepted at first draw; what
the compact index costs beside a search of every voxel of dense descriptors. Running it again goes on
where it stopped. Times are processor time of one thread.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from folders import set_folders
from naive_search import FullVolumeMatcher

from nnunet_alice.anatomy.world import PreparedCases
from nnunet_alice.cli.main import main as command
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.files import read_json, write_json
from nnunet_alice.matching.atlas import AtlasMatcher
from nnunet_alice.matching.error import (
    CentroidQuestions,
    PhantomQuestions,
    matching_errors,
    ordered_pairs,
    summarise,
)
from nnunet_alice.matching.index_dataset import index_dataset
from nnunet_alice.matching.interface import Matcher, RelativePositionMatcher
from nnunet_alice.matching.search import EmbeddingMatcher
from nnunet_alice.methods.embedding.losses import ContrastSettings
from nnunet_alice.phantoms import load_subjects, make_population, write_subjects
from nnunet_alice.trainers.anatomical_embedding import AnatomicalEmbeddingTrainer
from nnunet_alice.training.settings import changed
from nnunet_alice.views.pairs import MatchedPairs, matching_metrics


@dataclass(frozen=True)
class Data:
    """What is measured on.

    Attributes:
        number: of the dataset.
        name: of the dataset, as nnU-Net's converter gives it.
        cut_share: share of scans that are cut; None for the hippocampi.
        patch: voxels of a crop.
        features: of each stage of the network.
    """

    number: int
    name: str
    cut_share: float | None
    patch: tuple[int, int, int] = (32, 32, 32)
    features: tuple[int, ...] = (16, 32, 64, 96)


DATA = {
    "mixed": Data(910, "mixed", 2 / 3),
    "equal": Data(911, "equal", 0.0),
    "hippocampus": Data(4, "Hippocampus", None, (32, 48, 32), (12, 24, 48, 96)),
}
PLANS = "AliceSmallPlans"
#: cases on which every voxel is searched
_DENSE = 6
_FLOAT = "{:.2f}".format


def main() -> None:
    """Prepare, train, index, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", required=True, type=Path, help="folder for everything")
    parser.add_argument("--data", choices=DATA, default="mixed")
    parser.add_argument("-i", type=Path, metavar="FOLDER", help="Task04_Hippocampus as downloaded")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="an embedding trained before, instead of training"
    )
    parser.add_argument("--cases", type=int, default=64, help="phantoms [%(default)s]")
    parser.add_argument("--spacing", type=float, default=6.0, help="of phantoms, mm [%(default)s]")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=50, help="an epoch [%(default)s]")
    parser.add_argument("--pairs_a_step", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--dimension", type=int, default=64, help="of a descriptor [%(default)s]")
    parser.add_argument("--queries", type=int, default=60, help="a crop [%(default)s]")
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--points", type=int, default=50, help="a pair [%(default)s]")
    parser.add_argument("--draws", type=int, default=1000, help="views drawn for each provider [%(default)s]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_folders(args.o)
    os.environ["nnUNet_n_proc_DA"] = "0"

    dataset = prepare(args)
    checkpoint = args.checkpoint or train(args, dataset)
    held_out = HeldOut(dataset.name, PLANS, "3d_fullres")
    report = index_dataset(held_out, checkpoint, torch.device("cpu"))
    print(f"Indices by {checkpoint}: {report.outcomes.sentence('indexed')}; {report.calibration}")
    measure(args, held_out, checkpoint)


class HeldOut(PreprocessedDataset):
    """The cases that training does not see."""

    def cases(self) -> list[str]:
        """Return their names, sorted."""
        return sorted(read_json(self.base / "splits_final.json")[0]["val"])


def prepare(args: argparse.Namespace) -> PreprocessedDataset:
    """Return the volumes, planned, preprocessed and registered to an atlas."""
    data = DATA[args.data]
    number = str(data.number)
    name = f"Dataset{data.number:03d}_{data.name}"
    if not (Path(os.environ["nnUNet_preprocessed"]) / name / f"{PLANS}.json").is_file():
        make_phantoms(args, data) if data.cut_share is not None else convert(args, name)
        command(["plan", "-d", number, "-pl", "AlicePlannerSmall", "-np", "1"])
    dataset = PreprocessedDataset.find(number, PLANS, "3d_fullres")
    cases = dataset.cases()
    cut = round(0.75 * len(cases))
    write_json(dataset.base / "splits_final.json", [{"train": cases[:cut], "val": cases[cut:]}])
    command(["anatomy", "-d", number, "-p", PLANS, "-c", "3d_fullres", "-np", "1"])
    return dataset


def make_phantoms(args: argparse.Namespace, data: Data) -> None:
    """Write phantoms as unlabelled volumes."""
    volumes = args.o / args.data
    assert data.cut_share is not None  # only phantoms have it
    if not (volumes / "truth.json").is_file():
        write_subjects(
            volumes,
            make_population(range(1000, 1000 + args.cases), cut_share=data.cut_share),
            spacing_mm=args.spacing,
            images_folder=".",
            labels_folder=None,
        )
    command(["import", "-i", str(volumes), "-d", str(data.number), "-n", data.name, "--channel", "CT", "-np", "1"])


def convert(args: argparse.Namespace, name: str) -> None:
    """Write the hippocampi in nnU-Net's form."""
    if args.i is None:
        raise SystemExit("Name the folder of Task04_Hippocampus with -i.")
    if not (Path(os.environ["nnUNet_raw"]) / name / "dataset.json").is_file():
        converter = Path(sys.executable).parent / "nnUNetv2_convert_MSD_dataset"
        subprocess.run([converter, "-i", args.i.resolve(), "-np", "1"], check=True)


def train(args: argparse.Namespace, dataset: PreprocessedDataset) -> Path:
    """Train on the training cases, or go on with it; returns the final checkpoint."""
    architecture = dataset.plans["configurations"]["3d_fullres"]["architecture"]
    data = DATA[args.data]
    stages = len(data.features)
    network = {
        **architecture["arch_kwargs"],
        "n_stages": stages,
        "features_per_stage": list(data.features),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    configuration = {
        **dataset.plans["configurations"]["3d_fullres"],
        "batch_size": args.pairs_a_step,
        "patch_size": list(data.patch),
        "architecture": {**architecture, "arch_kwargs": network},
    }
    plans = {**dataset.plans, "configurations": {"3d_fullres": configuration}, "continue_training": False}
    own = {
        "run.epochs": args.epochs,
        "run.iterations": args.iterations,
        "run.seed": args.seed,
        "run.save_every": 1,
        "optimisation.learning_rate": args.lr,
        "method.dimension": args.dimension,
        "method.contrast": ContrastSettings(temperature=args.temperature, positives=args.queries),
        "method.validation_batches": 4,
    }
    settings = changed(AnatomicalEmbeddingTrainer.settings, own)
    name = f"AnatomicalEmbeddingTrainer_{args.epochs}x{args.iterations}_t{args.temperature:g}_lr{args.lr:g}"
    trainer = type(name, (AnatomicalEmbeddingTrainer,), {"settings": settings})(
        plans, "3d_fullres", 0, read_json(dataset.base / "dataset.json"), torch.device("cpu")
    )
    folder = Path(trainer.output_folder)
    if not (folder / "checkpoint_final.pth").is_file():
        if (folder / "checkpoint_latest.pth").is_file():
            trainer.load_checkpoint(str(folder / "checkpoint_latest.pth"))
        trainer.run_training()
    return folder / "checkpoint_final.pth"


def measure(args: argparse.Namespace, dataset: PreprocessedDataset, checkpoint: Path) -> None:
    """Print all tables, on held-out cases; write what they were made from."""
    embedding, atlas, relative = EmbeddingMatcher(dataset), AtlasMatcher(dataset), RelativePositionMatcher(dataset)
    held_out = dataset.cases()
    known = [case for case in held_out if case in atlas.cases]
    print(f"\n{len(held_out)} held-out cases; the atlas refuses {len(held_out) - len(known)} of them.")
    if DATA[args.data].cut_share is None:
        ask: CentroidQuestions | PhantomQuestions = CentroidQuestions(PreparedCases(dataset))
    else:
        subjects = load_subjects(args.o / args.data)
        ask = PhantomQuestions(PreparedCases(dataset), subjects, relative.body_points, args.points)
    folder = args.o / f"tables_{args.data}"
    folder.mkdir(exist_ok=True)

    errors = matching_errors([embedding, atlas, relative], ordered_pairs(known), ask, dataset.spacing)
    errors.to_csv(folder / "errors.csv", index=False)
    _show("Error in mm, cases that all methods know", summarise(errors))
    if errors["point"].nunique() > 1:
        _show("... by fields of view of the two scans, or label", summarise(errors, ("point", "matcher")))
    if len(known) < len(held_out):
        others = matching_errors([embedding, relative], ordered_pairs(held_out), ask, dataset.spacing)
        _show("... all held-out cases", summarise(others))

    dense = FullVolumeMatcher(dataset, checkpoint)
    few = held_out[:_DENSE]  # dense descriptors take 150 MB a case
    pairs = ordered_pairs(few)
    seconds = {}
    tables = []
    for matcher in (embedding, dense):
        for case in few:
            matcher.search(case)  # opening is not matching
        questions = {pair: ask(*pair) for pair in pairs}
        start = time.process_time()
        tables.append(matching_errors([matcher], pairs, lambda a, b: questions[a, b], dataset.spacing))  # noqa: B023
        seconds[matcher.name] = time.process_time() - start
    both = pd.concat(tables, ignore_index=True)
    _show(f"Compact index and search of every voxel, {len(pairs)} pairs", summarise(both))
    median = summarise(both).set_index("matcher")["median_mm"]
    print(
        f"The index costs {median['embedding'] / median[dense.name] - 1:+.1%} of the median error and is "
        f"{seconds[dense.name] / seconds['embedding']:.0f} times as fast "
        f"({len(tables[0]) / seconds['embedding']:.0f} and {len(tables[1]) / seconds[dense.name]:.1f} points a second)."
    )
    rows = {matcher.name: first_draws(matcher, dataset, known, args) for matcher in (embedding, atlas)}
    print("\nViews of AliceTrainer\n" + pd.DataFrame(rows).T.to_string(float_format=_FLOAT))


def first_draws(matcher: Matcher, dataset: PreprocessedDataset, cases: list[str], args) -> dict[str, float]:
    """Measure how drawing Alice's pairs of views goes with a matcher."""
    pairs = MatchedPairs(matcher, cases, DATA[args.data].patch, dataset.shape)
    rng = np.random.default_rng(args.seed)
    return matching_metrics([pairs.draw(rng) for _ in range(args.draws)])


def _show(title: str, table: pd.DataFrame) -> None:
    print(f"\n{title}\n{table.to_string(index=False, float_format=_FLOAT)}")


if __name__ == "__main__":
    main()
