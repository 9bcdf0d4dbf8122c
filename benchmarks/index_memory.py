"""Does memory grow with the number of cases, when they are indexed and when they are matched?

    python benchmarks/index_memory.py -o DIR

Makes four small phantoms, links them under 2,000 names, trains an embedding for one step and indexes all, in growing
parts; then matches points between random pairs. Prints resident and largest memory after each part.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from folders import set_folders

from nnunet_alice.cli.main import main as command
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.matching.index_dataset import index_dataset
from nnunet_alice.matching.search import EmbeddingMatcher
from nnunet_alice.phantoms import make_population, write_subjects

NUMBER, PLANS, PHANTOMS = 912, "AliceSmallPlans", 4
TRAINER = "AnatomicalEmbeddingTrainer_1epoch_1iteration"


def main() -> None:
    """Prepare, index part by part, match."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", required=True, type=Path, help="folder for everything")
    parser.add_argument("--cases", type=int, nargs="+", default=(100, 500, 1000, 2000), help="parts [%(default)s]")
    parser.add_argument("--spacing", type=float, default=12.0, help="mm [%(default)s]")
    parser.add_argument("--pairs", type=int, default=2000, help="pairs matched [%(default)s]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_folders(args.o)
    os.environ["nnUNet_n_proc_DA"] = "0"

    subjects = make_population(range(PHANTOMS))
    write_subjects(args.o / "volumes", subjects, spacing_mm=args.spacing, images_folder=".", labels_folder=None)
    command(["import", "-i", str(args.o / "volumes"), "-d", str(NUMBER), "-n", "many", "--channel", "CT", "-np", "1"])
    command(["plan", "-d", str(NUMBER), "-pl", "AlicePlannerSmall", "-np", "1"])
    dataset = PreprocessedDataset.find(NUMBER, PLANS, "3d_fullres")
    program = str(Path(sys.executable).parent / "nnUNetv2_train")
    trained = Path(os.environ["nnUNet_results"]) / dataset.name / f"{TRAINER}__{PLANS}__3d_fullres" / "fold_all"
    checkpoint = trained / "checkpoint_final.pth"
    if not checkpoint.is_file():  # in a process of its own: training takes memory that indexing does not
        arguments = ["-tr", TRAINER, "-p", PLANS, "-device", "cpu"]
        subprocess.run([program, str(NUMBER), "3d_fullres", "all", *arguments], check=True)
    originals = [case for case in dataset.cases() if case in subjects]
    print(f"before indexing: {memory()}", flush=True)
    for count in args.cases:
        link(dataset, originals, count)
        dataset = PreprocessedDataset.find(NUMBER, PLANS, "3d_fullres")
        start = time.perf_counter()
        report = index_dataset(dataset, checkpoint, torch.device("cpu"))
        seconds = time.perf_counter() - start
        print(f"{len(dataset.cases())} cases ({report.outcomes.done} made in {seconds:.0f} s): {memory()}", flush=True)
    matcher, rng = EmbeddingMatcher(dataset), np.random.default_rng(0)
    for part in range(4):
        for _ in range(args.pairs // 4):
            case_a, case_b = (matcher.cases[i] for i in rng.choice(len(matcher.cases), 2, replace=False))
            matcher.match(case_a, case_b, matcher.body_points(case_a, 10, rng))
        print(f"{(part + 1) * (args.pairs // 4)} random pairs matched: {memory()}", flush=True)


def link(dataset: PreprocessedDataset, originals: list[str], count: int) -> None:
    """Link the originals until there are ``count`` cases."""
    for number in range(len(originals), count):
        source = originals[number % len(originals)]
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            target = dataset.folder / f"copy{number:05d}{ending}"
            if not target.exists():
                os.link(dataset.folder / f"{source}{ending}", target)


def memory() -> str:
    """Return resident memory now, and the largest so far."""
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{now / 1e6:.0f} MB now, {largest / 1e6:.0f} MB at most"


if __name__ == "__main__":
    main()
