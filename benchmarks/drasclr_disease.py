"""Does DrasCLR learn disease? Pretrains on unlabelled phantoms, some of them ill, and probes what a linear model reads.

    python benchmarks/drasclr_disease.py -o DIR

Makes phantoms: a third healthy, a third with small lesions in random organs, a third with a diffuse change (emphysema,
fatty liver), each with a severity. Imports, plans and registers them with the public commands, and lays landmarks where
the organs are that can be ill. Every form of DrasCLR is trained on the pretraining phantoms with the same budget. The
other phantoms are never trained on: probes on their case features ask whether presence and severity can be read off
linearly. Beside them stand the same encoder untrained (the plain one, and the location-conditioned one), and the mean
and the histogram of the intensities. Running it again does only what is missing and continues what was interrupted.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from disease_encoders import command, train, untrained
from folders import set_folders

from nnunet_alice.anatomy.atlas_files import AtlasFiles
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.features.encoders import TrainedEncoder, open_encoder
from nnunet_alice.features.extraction import extract
from nnunet_alice.features.images import DatasetImages
from nnunet_alice.features.probe import probe
from nnunet_alice.features.probe_data import load_features, load_table
from nnunet_alice.files import atomic_write, write_json
from nnunet_alice.methods.unets import encoder_of
from nnunet_alice.phantoms import Subject, load_subjects, make_subject, write_disease_table, write_subjects

DATASET, NAME, PLANS = 950, "Disease", "AliceSmallPlans"
FORMS = ("", "_noLocation", "_noRegional", "_2experts")
KINDS = ("none", "lesions", "emphysema", "none", "lesions", "fatty_liver")
#: (title, target, task, metric, kinds of disease that take part beside the healthy)
QUESTIONS = (
    ("diffuse", "diffuse", "classification", "auc", ("emphysema", "fatty_liver")),
    ("diffuse severity", "diffuse_severity", "regression", "r2", ("emphysema", "fatty_liver")),
    ("emphysema", "diffuse", "classification", "auc", ("emphysema",)),
    ("emphysema severity", "diffuse_severity", "regression", "r2", ("emphysema",)),
    ("lesions", "lesions", "classification", "auc", ("lesions",)),
    ("lesion severity", "lesion_severity", "regression", "r2", ("lesions",)),
)
#: organs that can be ill: landmarks are laid where they are, as the paper lays them on lungs
REGION = ("lung_right", "lung_left", "liver", "spleen", "kidney_right", "kidney_left")
#: bins of the intensity histogram, in units of nnU-Net's normalisation
_BINS = np.linspace(-4, 3, 29)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", required=True, type=Path, help="folder for everything")
    parser.add_argument("--forms", nargs="*", default=FORMS, help="endings of DrasCLRTrainer")
    parser.add_argument("--pretraining", type=int, default=60, help="phantoms to train on")
    parser.add_argument("--probing", type=int, default=144, help="phantoms to probe")
    parser.add_argument("--spacing_mm", type=float, default=6.0)
    parser.add_argument("--landmark_patch_mm", type=float, default=64.0)
    parser.add_argument("--landmark_step_mm", type=float, default=40.0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=100, help="an epoch")
    parser.add_argument("--learning_rate", default="3e-2", help="peak, the same for all forms (default: %(default)s)")
    parser.add_argument("--folds", type=int, default=5, help="of the probes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_folders(args.o)
    os.environ |= {"nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1"}

    dataset, probed = prepare(args)
    (args.o / "features").mkdir(exist_ok=True)
    arms = {"mean intensity": None, "intensity histogram": None}
    intensities(dataset, probed, args.o)
    for form in args.forms:
        name = f"DrasCLRTrainer{form}"
        variant = f"{name}_{args.epochs}epochs_{args.iterations}iterations_lr{args.learning_rate}"
        checkpoint = train(variant, dataset.name, PLANS, 0)
        trained = open_encoder(checkpoint)
        take(name, trained, dataset, probed, args.o)
        arms[name] = None
        if form == "":
            take("untrained", open_encoder(checkpoint, untrained=True), dataset, probed, args.o)
            take("untrained, conditional", untrained(checkpoint, 0, conditional=True), dataset, probed, args.o)
            take(f"{name}, plain", open_encoder(checkpoint, plain=True), dataset, probed, args.o)
            arms |= dict.fromkeys(("untrained", "untrained, conditional", f"{name}, plain"))
            channels = encoder_of(trained.module).output_channels[-1]
            arms |= dict.fromkeys(take_pooled(arm, channels, args.o) for arm in (name, "untrained, conditional"))
        report(list(arms), args)


def prepare(args: argparse.Namespace) -> tuple[PreprocessedDataset, list[str]]:
    """Return the dataset, registered and with landmarks, and the names of the phantoms to probe."""
    images = args.o / "phantoms"
    if not (images / "truth.json").is_file():
        count = args.pretraining + args.probing
        write_subjects(
            images,
            {f"phantom{number:05d}": draw(number) for number in range(count)},
            spacing_mm=args.spacing_mm,
            images_folder="volumes",
            labels_folder=None,
        )
    subjects = load_subjects(images)
    cases = sorted(subjects)
    probed = cases[args.pretraining :]
    write_disease_table(args.o / "labels.csv", {case: subjects[case].disease for case in probed})
    dataset = ["-d", str(DATASET)]
    plans = Path(os.environ["nnUNet_preprocessed"]) / f"Dataset{DATASET}_{NAME}" / f"{PLANS}.json"
    if not plans.is_file():
        command("import", "-i", str(images / "volumes"), *dataset, "-n", NAME, "--channel", "CT", "-np", "1")
        command("plan", *dataset, "-pl", "AlicePlannerSmall", "-np", "1")
    anatomy = ["anatomy", *dataset, "-p", PLANS, "-np", "1"]
    found = PreprocessedDataset.find(DATASET, PLANS, "3d_fullres")
    if not (args.o / "registered").is_file():
        command(*anatomy)
        atlas = AtlasFiles(found).atlas_case()
        assert atlas is not None
        write_subjects(args.o / "region", {atlas: subjects[atlas]}, spacing_mm=args.spacing_mm, organs=REGION)
        grid = ["--landmark_patch_mm", str(args.landmark_patch_mm), "--landmark_step_mm", str(args.landmark_step_mm)]
        command(*anatomy, *grid, "--roi", str(args.o / "region" / "labels" / f"{atlas}.nii.gz"))
        (args.o / "registered").touch()
    write_json(found.base / "splits_final.json", [{"train": cases[: args.pretraining], "val": probed}])
    return found, probed


def draw(number: int) -> Subject:
    """Make the phantom of a number: kinds take turns; severity and sites of its disease come from the number too."""
    return make_subject(number, disease=KINDS[number % len(KINDS)])


def take(name: str, encoder: TrainedEncoder, dataset: PreprocessedDataset, probed: list[str], folder: Path) -> None:
    """Take features of the phantoms to probe."""
    path = folder / "features" / f"{name}.npz"
    if not path.is_file():
        images = DatasetImages(dataset, encoder.run)
        images.cases = probed
        extract(encoder, images, "case", path)


def take_pooled(name: str, count: int, folder: Path) -> str:
    """Return the averaged bottleneck of features that were taken, without the statistics that norms take out."""
    part = f"{name}, bottleneck alone"
    with (
        np.load(folder / "features" / f"{name}.npz") as features,
        atomic_write(folder / "features" / f"{part}.npz") as temporary,
    ):
        np.savez(temporary, level="case", cases=features["cases"], features=features["features"][:, :count])
    return part


def intensities(dataset: PreprocessedDataset, probed: list[str], folder: Path) -> None:
    """Keep what needs no network: mean and histogram of all voxels of a case, in nnU-Net's normalisation."""
    means, histograms = [], []
    for case in probed:
        image = np.asarray(dataset.image(case)[:])
        means.append([image.mean()])
        histograms.append(np.histogram(image.clip(_BINS[0], _BINS[-1]), _BINS, density=True)[0])
    for name, features in (("mean intensity", means), ("intensity histogram", histograms)):
        with atomic_write(folder / "features" / f"{name}.npz") as temporary:
            np.savez(temporary, level="case", cases=np.array(probed), features=np.array(features, dtype=np.float32))


def report(arms: list[str], args: argparse.Namespace) -> None:
    """Write and print one row an arm, one column a question: value and 95 % interval."""
    rows = []
    kinds = pd.read_csv(args.o / "labels.csv").set_index("case")["kind"]
    for arm in arms:
        cases, features = load_features(args.o / "features" / f"{arm}.npz")
        row = {"features": arm, "numbers": features.shape[1]}
        for title, target, task, metric, ill in QUESTIONS:
            part = kinds[cases].isin(("none", *ill)).to_numpy()
            data = load_table(args.o / "labels.csv", cases[part], features[part], target, task)
            found = probe(data, task, args.folds).metrics.set_index("metric").loc[metric]
            row[f"{title} ({metric})"] = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
        rows.append(row)
    table = pd.DataFrame(rows)
    with atomic_write(args.o / "table.csv") as temporary:
        table.to_csv(temporary, index=False)
    print(table.to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
