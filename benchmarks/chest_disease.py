"""Does DrasCLR learn disease of real lungs? Plants it in chest CTs, pretrains without labels, and probes.

    python benchmarks/chest_disease.py -i Dataset061_ChestCT -o DIR

Every CT is resampled to 4 mm and shown several times, each with emphysema of a kind (centrilobular, paraseptal,
panlobular) and extent of its own. Half of them have consolidations, too; the rest is the real scan. Public commands
import, plan (with a window) and register these scans by their lungs, with landmarks in the lungs of the atlas. In each
of three folds a third of the patients is held out from pretraining. A linear model is fitted on features of the other
two thirds and predicts those held out: extent of emphysema and of consolidation from case features, presence and kind
of emphysema from features of single patches. Three seeds of pretraining; intervals are of a bootstrap over patients.

Beside DrasCLR, its ablations and masked image modelling stand untrained encoders and histograms of intensities. Every
prediction is added to DIR/predictions_seed*.csv as soon as it is made, and running it again does only what is missing.
``--versions``, ``--patches`` and ``--own_subjects`` need a folder of their own. ``--arms`` chooses;
``python benchmarks/drasclr_ablations.py`` is the same for the paper's ablations.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from disease_encoders import command, train, untrained
from disease_report import QUESTIONS, write_report
from folders import set_folders
from planted_lungs import CONSOLIDATION, FIRST_KIND, HEALTHY, KINDS, plant
from scipy import ndimage
from threadpoolctl import threadpool_limits

from nnunet_alice.anatomy.atlas_files import OK, AtlasFiles
from nnunet_alice.anatomy.lungs import lung_mask
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.features.encoders import TrainedEncoder, open_encoder
from nnunet_alice.features.extraction import patch_features, point_features
from nnunet_alice.features.images import DatasetImages
from nnunet_alice.features.patch_labels import read_patch_table
from nnunet_alice.features.probe import fit_classifier, fit_ridge
from nnunet_alice.files import atomic_write, write_json
from nnunet_alice.views.border_crops import crop_with_border

DATASET, NAME, PLANS = 961, "PlantedChest", "AliceSmallPlans"
SPACING_MM, FOLDS = 4.0, 3
#: The scans have 8 bits, of a range of their own: scaled so that air and soft tissue come to these HU. Some range so
#: far (metal) that lungs are left with a few values; those are left out.
AIR_HU, TISSUE_HU, FEWEST_VALUES = -1000.0, 40.0, 30
#: what is kept around the lungs
MARGIN_MM = 36.0
#: of a pretraining; arms of a different length say so
EPOCHS, ITERATIONS = 4, 75
_BINS = np.linspace(-1, 1, 41)
HISTOGRAM, UNTRAINED, CONDITIONAL = "histogram", "untrained", "untrained, conditional"
DRASCLR = "DrasCLRTrainer"
ARMS = (HISTOGRAM, DRASCLR, UNTRAINED, CONDITIONAL, f"{DRASCLR}_noLocation", f"{DRASCLR}_noRegional", "MIMTrainer")


class Features(NamedTuple):
    """What is probed.

    Attributes:
        cases: of the cases, sorted.
        of_cases: (cases, C).
        of_patches: (patches, C), in the order of the table of patches.
    """

    cases: list[str]
    of_cases: np.ndarray
    of_patches: np.ndarray


def main(arms: Sequence[str] = ARMS, description: str | None = __doc__) -> None:
    """Run the benchmark; ``arms`` are those that are chosen by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", required=True, type=Path, help="Dataset061_ChestCT")
    parser.add_argument("-o", required=True, type=Path, help="folder for everything")
    parser.add_argument("--arms", nargs="*", default=arms, help="histogram, untrained, ... or names of trainers")
    parser.add_argument("--seeds", nargs="*", type=int, default=(0, 1, 2))
    parser.add_argument("--all", action="store_true", help="also pretrain on all patients, those to be predicted too")
    parser.add_argument("--versions", type=int, default=2, help="scans made of each CT (default: %(default)s)")
    parser.add_argument("--patches", type=int, default=24, help="of a case, ill and not (default: %(default)s each)")
    parser.add_argument(
        "--own_subjects", action="store_true", help="scans made of one CT are contrasted, too: they differ in disease"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--prepare", action="store_true", help="stop when all scans are registered")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="an epoch")
    parser.add_argument("--learning_rate", default="3e-2", help="of DrasCLR, peak (default: %(default)s)")
    parser.add_argument(
        "--reference", default=DRASCLR, help="arm that is compared with all others (default: %(default)s)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    set_folders(args.o)
    os.environ |= {"nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1"}

    dataset = prepare(args)
    if args.prepare:
        return
    probes = Probes(args.o, dataset)
    for seed in args.seeds:
        for arm in args.arms:
            for fold in (*range(FOLDS), *(["all"] if args.all and "Trainer" in arm else [])):
                probes.run(arm, seed, fold, args)
        write_report(args.o, args.reference)


def prepare(args: argparse.Namespace) -> PreprocessedDataset:
    """Return the dataset, registered and with landmarks, its folds, and the tables of cases and patches."""
    if not (args.o / "patches.csv").is_file():
        plant_all(args)
    base = Path(os.environ["nnUNet_preprocessed"]) / f"Dataset{DATASET}_{NAME}"
    if not (base / f"{PLANS}.json").is_file():
        command("import", "-i", f"{args.o}/scans", "-d", str(DATASET), "-n", NAME, "--channel", "CT", "-np", "1")
        command("plan", "-d", str(DATASET), "-pl", "AlicePlannerSmall", "--window", "lungs", "-np", "1")
    if not (args.o / "registered").is_file():
        command(
            "anatomy", "-d", str(DATASET), "-p", PLANS, "-np", "1", "--roi", "lungs",
            "--subjects", r"(chest_\d+_.)" if args.own_subjects else r"(chest_\d+)_",
            "--register_by", "lungs", "--landmark_patch_mm", "32", "--landmark_step_mm", "32",
        )  # fmt: skip
        (args.o / "registered").touch()
    found = PreprocessedDataset.find(DATASET, PLANS, "3d_fullres")
    cases = found.cases()
    held_out = [[case for case in cases if fold_of(case) == fold] for fold in range(FOLDS)]
    splits = [{"train": sorted(set(cases) - set(part)), "val": part} for part in held_out]
    write_json(found.base / "splits_final.json", splits)
    return found


def patient_of(case: str) -> str:
    """Return the CT that a case was made of."""
    return case.rpartition("_")[0]


def fold_of(case: str) -> int:
    """Return the fold that holds a case out."""
    return int(patient_of(case).rpartition("_")[2]) % FOLDS


def plant_all(args: argparse.Namespace) -> None:
    """Write all scans, the table of cases and the table of patches; patients that were done are kept."""
    for folder in ("scans", "tables"):
        (args.o / folder).mkdir(parents=True, exist_ok=True)
    for path in sorted((args.i / "imagesTr").glob("*.nii.gz")):
        patient = path.name.removesuffix("_0000.nii.gz")
        if not (args.o / "tables" / f"patches_{patient}.csv").is_file():
            plant_patient(path, patient, args)
    for name in ("cases", "patches"):
        tables = [pd.read_csv(path) for path in sorted((args.o / "tables").glob(f"{name}_*.csv"))]
        with atomic_write(args.o / f"{name}.csv") as temporary:
            pd.concat(tables).to_csv(temporary, index=False)


def plant_patient(path: Path, patient: str, args: argparse.Namespace) -> None:
    """Write the scans that are made of one CT, around its lungs, and their rows."""
    folder = args.o
    scan = resampled(sitk.ReadImage(str(path)))
    array, spacing = sitk.GetArrayFromImage(scan), np.array(scan.GetSpacing()[::-1])
    lungs = lung_mask(array, spacing.tolist())
    hu = hounsfield(array, lungs)
    if hu is None:
        print(f"{patient} is left out: its 8 bits leave too few values for lungs", flush=True)
        return
    around = np.ceil(MARGIN_MM / spacing).astype(int)
    low = np.maximum(0, np.argwhere(lungs).min(axis=0) - around)
    high = np.minimum(lungs.shape, np.argwhere(lungs).max(axis=0) + 1 + around)
    box = tuple(slice(first, end) for first, end in zip(low.tolist(), high.tolist(), strict=True))
    hu, lungs = hu[box], lungs[box]
    cases, patches = [], []
    for version in range(args.versions):
        number = int(patient.rpartition("_")[2])
        rng = np.random.default_rng([number, version])
        kind = KINDS[(number // FOLDS + version) % len(KINDS)]
        radii = tuple(rng.uniform(10, 22, size=rng.integers(1, 3))) if rng.random() < 0.5 else ()
        planted = plant(hu, lungs, spacing, kind, rng.uniform(0.02, 0.3), radii, rng)
        case = f"{patient}_{'abcdef'[version]}"
        image = sitk.GetImageFromArray(planted.image)
        image.SetSpacing(scan.GetSpacing())
        image.SetDirection(scan.GetDirection())
        image.SetOrigin(scan.TransformIndexToPhysicalPoint(low[::-1].tolist()))
        sitk.WriteImage(image, str(folder / "scans" / f"{case}.nii.gz"))
        shares = np.histogram(planted.image[lungs].clip(-1024, 240), 40, (-1024, 240))[0] / lungs.sum()
        cases.append(
            {"case": case, "kind": kind, "emphysema": planted.emphysema, "consolidation": planted.consolidation}
            | {f"bin{i}": share for i, share in enumerate(shares)}
        )
        patches += list(draw_patches(case, kind, planted.labels, args.patches, rng))
    for name, rows in (("cases", cases), ("patches", patches)):
        with atomic_write(folder / "tables" / f"{name}_{patient}.csv") as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)


def resampled(scan: sitk.Image) -> sitk.Image:
    """Return a scan at ``SPACING_MM``, smoothed by half of the new voxels before."""
    size = [max(1, int(n * step / SPACING_MM)) for n, step in zip(scan.GetSize(), scan.GetSpacing(), strict=True)]
    smooth = sitk.SmoothingRecursiveGaussian(sitk.Cast(scan, sitk.sitkFloat32), SPACING_MM / 3)
    new = sitk.Resample(
        smooth, size, sitk.Transform(), sitk.sitkLinear, scan.GetOrigin(), [SPACING_MM] * 3, scan.GetDirection()
    )
    return new


def hounsfield(array: np.ndarray, lungs: np.ndarray) -> np.ndarray | None:
    """Return a scan in HU, as far as air and soft tissue tell; None where it has too few values between them."""
    values = array.astype(np.float32)
    air, tissue = np.median(values[values < values[lungs].mean()]), np.median(values[values > values[lungs].mean()])
    if tissue - air < FEWEST_VALUES:
        return None
    return AIR_HU + (values - air) * ((TISSUE_HU - AIR_HU) / (tissue - air))


def draw_patches(case: str, kind: str, labels: np.ndarray, most: int, rng: np.random.Generator) -> Iterator[dict]:
    """Return places with emphysema (a fifth of the lung around is destroyed, at least) and without any."""
    width = 9
    lung, ill = (
        ndimage.uniform_filter(mask.astype(np.float32), width)
        for mask in (labels >= HEALTHY, (labels >= FIRST_KIND) & (labels < CONSOLIDATION))
    )
    filled = ndimage.uniform_filter((labels == CONSOLIDATION).astype(np.float32), width)
    inside = (lung > 0.5) & (filled < 1e-4)
    for label, where in ((kind, inside & (ill > 0.2 * lung)), ("none", inside & (ill < 1e-4))):
        for z, y, x in rng.permutation(np.argwhere(where))[:most].tolist():
            yield {"case": case, "x_vox": x, "y_vox": y, "z_vox": z, "label": label, "patient": patient_of(case)}


class Probes:
    """Features, models and their predictions.

    Args:
        folder: of the benchmark.
        dataset: the cases.
    """

    def __init__(self, folder: Path, dataset: PreprocessedDataset) -> None:
        self.folder, self.dataset = folder, dataset
        report = AtlasFiles(dataset).read_report()
        registered = [] if report is None else [record.case for record in report.named(OK)]
        cases = pd.read_csv(folder / "cases.csv").set_index("case")
        self.cases = cases[cases.index.isin(registered)]
        labels = read_patch_table(folder / "patches.csv", "label", group="patient")
        kept = np.isin(labels.cases, self.cases.index)
        self.labels = replace(
            labels, **{name: getattr(labels, name)[kept] for name in ("cases", "points", "labels", "groups")}
        )
        self._features: tuple[tuple, Features] | None = None
        self._points: dict[str, np.ndarray] = {}

    def run(self, arm: str, seed: int, fold: int | str, args: argparse.Namespace) -> None:
        """Fit and predict one arm, seed and fold (``all``: all folds, of one pretraining on all patients)."""
        steps = args.epochs * args.iterations
        longer = f", {steps:,} steps" if "Trainer" in arm and steps != EPOCHS * ITERATIONS else ""
        key = (arm + longer + (", all patients" if fold == "all" else ""), seed)
        folds = range(FOLDS) if fold == "all" else [int(fold)]
        file = self.folder / f"predictions_seed{seed}.csv"  # several processes may share the seeds
        if file.is_file():
            done = pd.read_csv(file, usecols=["arm", "seed", "fold"]).drop_duplicates()
            folds = [one for one in folds if (*key, one) not in set(done.itertuples(index=False, name=None))]
        if not folds:
            return
        features = self.features(arm, seed, fold, args)
        rows = [row for one in folds for row in self.predict(features, one)]
        table = pd.DataFrame(rows)
        table.insert(0, "arm", key[0])
        table.insert(1, "seed", seed)
        table.to_csv(file, mode="a", header=not file.is_file(), index=False)
        print(f"{key[0]}, seed {seed}, fold {fold}: predicted", flush=True)

    def features(self, arm: str, seed: int, fold: int | str, args: argparse.Namespace) -> Features:
        """Take features of an arm; those of untrained encoders are the same in all folds."""
        own = (arm, seed, fold if "Trainer" in arm else None)
        if self._features is None or self._features[0] != own:
            self._features = own, self._take(arm, seed, fold, args)
        return self._features[1]

    def _take(self, arm: str, seed: int, fold: int | str, args: argparse.Namespace) -> Features:
        if arm == HISTOGRAM:
            return self._histograms(self._encoder(DRASCLR, args.seeds[0], 0, args))
        if arm in (UNTRAINED, CONDITIONAL):
            checkpoint = self._checkpoint(DRASCLR, args.seeds[0], 0, args)
            return self._encoded(untrained(checkpoint, seed, arm == CONDITIONAL))
        return self._encoded(self._encoder(arm, seed, fold, args))

    def _checkpoint(self, arm: str, seed: int, fold: int | str, args: argparse.Namespace) -> Path:
        # A step of the other methods, on the plans' patch and with a decoder, takes about three times as long.
        iterations = args.iterations if arm.startswith(DRASCLR) else max(1, args.iterations // 3)
        rate = f"_lr{args.learning_rate}" if arm.startswith(DRASCLR) else ""
        trainer = f"{arm}_{args.epochs}epochs_{iterations}iterations{rate}_seed{seed}"
        return train(trainer, self.dataset.name, PLANS, fold)

    def _encoder(self, arm: str, seed: int, fold: int | str, args: argparse.Namespace) -> TrainedEncoder:
        return open_encoder(self._checkpoint(arm, seed, fold, args))

    def _encoded(self, encoder: TrainedEncoder) -> Features:
        """Return the mean over the landmarks of each case, and every labelled patch."""
        images = DatasetImages(self.dataset, encoder.run)
        cases = list(self.cases.index)
        of_cases: list[np.ndarray] = []
        of_patches: dict[int, np.ndarray] = {}
        for case in cases:
            opened, rows = images.open(case), self.labels.of_case(case)
            of_cases.append(patch_features(encoder, opened).features.mean(axis=0))
            found = point_features(encoder, opened, self.labels.points_vox(rows, opened))
            of_patches |= dict(zip(rows.tolist(), found, strict=True))
        return Features(cases, np.stack(of_cases), np.stack([of_patches[row] for row in range(len(self.labels.cases))]))

    def _histograms(self, encoder: TrainedEncoder) -> Features:
        """Return histograms of all lungs, by the truth, and of the crops that an encoder would see."""
        images = DatasetImages(self.dataset, encoder.run)
        of_patches: dict[int, np.ndarray] = {}
        for case in self.cases.index:
            opened, rows = images.open(case), self.labels.of_case(case)
            for row, point in zip(rows.tolist(), self.labels.points_vox(rows, opened), strict=True):
                crop = crop_with_border(opened.image, point, encoder.size)
                of_patches[row] = np.histogram(crop, _BINS)[0] / crop.size
        bins = [column for column in self.cases if column.startswith("bin")]
        patches = np.stack([of_patches[row] for row in range(len(self.labels.cases))])
        return Features(list(self.cases.index), self.cases[bins].to_numpy(), patches)

    def predict(self, features: Features, fold: int) -> Iterator[dict]:
        """Return rows of predictions of the cases and patches that a fold holds out."""
        for question in QUESTIONS:
            x, names, target = self._rows(features, question.name)
            test = np.array([fold_of(name) == fold for name in names])
            patients = np.array([patient_of(name) for name in names])
            with threadpool_limits(1):
                if question.classes is None:
                    model, _ = fit_ridge(x[~test], target[~test], patients[~test], 0)
                    answers = model.predict(x[test])[:, None]
                else:
                    numbers = np.array([question.classes.index(label) for label in target])
                    model = fit_classifier(x[~test], numbers[~test], patients[~test], 0)
                    answers = model.predict_proba(x[test])
            for name, truth, answer in zip(names[test], target[test], answers, strict=True):
                scores = {f"score{i}": float(f"{value:.6g}") for i, value in enumerate([*answer, *[np.nan] * 3][:3])}
                row = {"fold": fold, "question": question.name, "patient": patient_of(name), "case": name}
                yield row | {"truth": truth} | scores

    def _rows(self, features: Features, question: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return features, case and target of every row of a question."""
        if question in self.cases:
            table = self.cases.loc[features.cases]
            return features.of_cases.astype(float), np.array(features.cases), table[question].to_numpy(float)
        ill = self.labels.labels != "none"
        target = np.where(ill, "ill", "none") if question == "presence" else self.labels.labels
        kept = np.full(len(ill), True) if question == "presence" else ill
        return features.of_patches[kept].astype(float), self.labels.cases[kept], target[kept]


if __name__ == "__main__":
    main()
