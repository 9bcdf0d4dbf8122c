"""Age and sex from brain T1, 20 and 60 labelled subjects: scratch, pretrained and linear probes, one command.

    python benchmarks/brain_age.py -i Dataset062_BrainT1 -o FOLDER

Imports all 165 scans, plans them at 6 mm with a small network, and pretrains on all of them without labels. Trains
``RegressionTrainer`` on the 75 subjects whose age and sex are known: one network for the age and for the sex as a
number (0, 1). Start it again after an interruption: only what is missing is done, seed after seed. ``--part 1/2`` and
``--part 2/2`` share the trainings among two processes. ``--report`` writes the table of what is done.

The protocol, fixed before a pretrained network predicted a test subject:

- Five folds. A seed of fine-tuning draws the labelled subjects of a fold, too, as many of every fifth of the age.
- All arms have the same network, length and endings. The head of every arm starts as a linear probe of its labelled
  subjects (``_probeFirst``), on the features of all four stages (``_4stages``). Scratch and pretrained differ by the
  encoder's first weights alone. The head was settled after a head of random weights had predicted one test fold from
  scratch, no better than the mean age.
- All arms learn at 1e-3. On training subjects of fold 0 (four inner folds, at 9 mm, from scratch) 1e-3 had the better
  correlation and AUC, and 3e-3 the better R2. No rate was chosen for the pretrained arms. 200 steps are what 90
  trainings can take.
- Beside the trainings stand linear models: ridge for the age, logistic regression for the sex. They see features of
  the pretrained encoders, of an untrained one, or the image itself in cubes of 18 mm.

``--tune 1e-3 3e-3`` compares learning rates on training subjects of fold 0 and stops.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from folders import set_folders
from label_efficiency import ON_CPU, call, on_cpu, pretrain
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnunet_alice.checkpoints.loading import load_checkpoint, network_weights
from nnunet_alice.checkpoints.networks import network_of_file
from nnunet_alice.cropping import crop_centred
from nnunet_alice.dataset import LazyImage, PreprocessedDataset
from nnunet_alice.features.probe import LOGISTIC_C, RIDGE_ALPHAS
from nnunet_alice.files import atomic_write, read_json, write_json
from nnunet_alice.methods.unets import encoder_of
from nnunet_alice.targets.definitions import load_targets
from nnunet_alice.targets.head_start import case_features
from nnunet_alice.targets.network import pooled_encoder
from nnunet_alice.targets.splits import make_splits, strata
from nnunet_alice.targets.windows import CasePredictor

DATASET = "Dataset062_BrainT1"
#: plans of the pretraining (small views) and of the whole head, which share the preprocessed images
VIEWS, WHOLE = "BrainPlans", "BrainWholePlans"
SPACING_MM, VIEW, HEAD = 6.0, [24, 32, 32], [32, 40, 40]
FEATURES, STRIDES = [8, 16, 32, 64], [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
FOLDS = 5
#: the columns that the network learns, age first: folds and draws are stratified by its fifths
COLUMNS = ("age_years", "male")


def rank_correlation(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return Spearman's correlation; 0 where all predictions are the same."""
    return float(spearmanr(truth, predicted).statistic) if np.ptp(predicted) > 0 else 0.0


#: what is measured: column -> (metric, function of truth and prediction, higher is better)
METRICS = {
    "age_years": (("r2", r2_score, True), ("mae", mean_absolute_error, False), ("rank", rank_correlation, True)),
    "male": (("auc", roc_auc_score, True),),
}
SCRATCH, PROBE, UNTRAINED, IMAGE = "scratch", "probe", "untrained encoder", "image"
ENDINGS = "2epochs_100iterations_probeFirst_4stages"
#: stages whose features a probe sees, and the cubes of the image, in voxels
STAGES, CUBE = 4, 3
#: of the landmarks of ``anatomy``, mm: a third of a head
LANDMARKS = ("--landmark_patch_mm", 96, "--landmark_step_mm", 48)
#: of the tuning runs, in place of a fold
TUNING, TUNING_LABELS = "tuning", 45


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        labels: labelled subjects that it sees.
        arm: ``scratch``, or a pretraining trainer.
        seed: of the training, and of the draw of subjects.
        fold: that is predicted; ``tuning`` for training subjects of fold 0.
        rate: learning rate.
    """

    labels: int
    arm: str
    seed: int
    fold: int | str
    rate: str


def main() -> int:
    """Run the steps that are not done, then write the tables."""
    from argparse import ArgumentParser, RawDescriptionHelpFormatter

    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("-i", type=Path, required=True, metavar="FOLDER", help="Dataset062_BrainT1")
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="for everything that is made")
    parser.add_argument("-np", default="2", help="processes [2]")
    parser.add_argument("-device", default="cpu", help="for every training [cpu]")
    pretraining = [f"{name}_20epochs_50iterations" for name in ("DrasCLRTrainer_noLocation_lr3e-2", "MIMTrainer")]
    parser.add_argument("--trainers", nargs="*", default=pretraining, help=f"that pretrain [{' '.join(pretraining)}]")
    parser.add_argument("--pretraining_seed", default="1", help="[1]")
    parser.add_argument("--labels", nargs="+", type=int, default=[20, 60], help="labelled subjects [20 60]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of fine-tuning [1 2 3]")
    parser.add_argument("--folds", nargs="+", type=int, default=list(range(FOLDS)), help="[0 1 2 3 4]")
    parser.add_argument("--endings", default=ENDINGS, help="of all trainings [%(default)s]")
    parser.add_argument("--scratch_lr", default="1e-3", help="learning rate from scratch [%(default)s]")
    parser.add_argument("--lr", default="1e-3", help="learning rate of fine-tuning [%(default)s]")
    parser.add_argument("--tune", nargs="+", default=[], metavar="LR", help="compare learning rates and stop")
    parser.add_argument("--part", default="1/1", help="share of the trainings [1/1]")
    parser.add_argument("--report", action="store_true", help="train nothing, write the tables of what is done")
    parser.add_argument("--table", type=Path, metavar="FILE", help="of the results [FOLDER/table.csv]")
    args = parser.parse_args()
    on_cpu(args.device, ON_CPU)
    folders = set_folders(args.o)
    prepare(args, folders)
    trainers = [f"{name}_seed{args.pretraining_seed}" for name in args.trainers]
    pretrain(DATASET, VIEWS, args.trainers, [args.pretraining_seed], args.device)
    checkpoints = {name: results(folders, name, VIEWS, "all") / "checkpoint_final.pth" for name in trainers}
    runs = list(tuning_runs(args, trainers) if args.tune else all_runs(args, trainers))
    if not args.report:
        part, parts = map(int, args.part.split("/"))
        # nnU-Net reads this once; a folder for each process, as two arms of one name may train at the same time
        os.environ["nnUNet_results"] = str(args.o.absolute() / f"training_{part}_of_{parts}")
        for run in runs[part - 1 :: parts]:
            train(run, args, checkpoints)
    if args.tune:
        table = pd.DataFrame([row for run in runs for row in predictions(run, args)])
        for (arm, rate), own in table.groupby(["arm", "rate"], sort=False):
            print(arm, rate, *(f"{name} {value:.3f}" for name, value in measured(own).items()))
        return 0
    rows = [row for run in runs for row in predictions(run, args)]
    rows += [row for name, path in checkpoints.items() for row in probe(f"{PROBE} {name}", path, args, folders)]
    rows += list(probe(f"{PROBE} {UNTRAINED}", None, args, folders))
    rows += list(probe(f"{PROBE} {IMAGE}", None, args, folders))
    report(pd.DataFrame(rows), args)
    return 0


def prepare(args: Namespace, folders: dict[str, Path]) -> None:
    """Import, plan and preprocess all scans; targets, folds and anatomy."""
    base = folders["nnUNet_preprocessed"] / DATASET
    if not (base / "prepared").is_file():
        words = ("-d", 62, "-n", "BrainT1", "--channel", "T1", "-np", args.np)
        call("nnunet_alice", "import", "-i", args.i / "images", *words)
        call("nnunet_alice", "plan", "-d", 62, "-pl", "AlicePlannerSmall", "--no_preprocess", "-np", args.np)
        write_plans(base)
        call("nnUNetv2_preprocess", "-d", 62, "-plans_name", VIEWS, "-c", "3d_fullres", "-np", args.np)
        table = pd.read_csv(args.i / "subjects.csv")
        table.assign(male=(table["sex"] == "M").astype(int)).to_csv(args.o / "subjects.csv", index=False)
        target = ("--target", *COLUMNS, "--task", "regression", "--name", "both")
        call("nnunet_alice", "targets", "-d", 62, "--table", args.o / "subjects.csv", *target)
        if any(not trainer.startswith("MIM") for trainer in args.trainers):
            call("nnunet_alice", "anatomy", "-d", 62, "-p", VIEWS, "-c", "3d_fullres", *LANDMARKS, "-np", args.np)
        (base / "prepared").touch()
    write_folds(base, args)


def write_plans(folder: Path) -> None:
    """Make two plans of one network and one spacing: views for the pretraining, and the whole head."""
    plans = read_json(folder / "AliceSmallPlans.json")
    configuration = plans["configurations"]["3d_fullres"]
    network = configuration["architecture"]["arch_kwargs"]
    stages = len(FEATURES)
    network |= {"n_stages": stages, "features_per_stage": FEATURES, "strides": STRIDES}
    network |= {"kernel_sizes": [[3, 3, 3]] * stages, "n_conv_per_stage_decoder": [1] * (stages - 1)}
    network |= {"n_conv_per_stage": [1] + [2] * (stages - 1)}
    configuration |= {"spacing": [SPACING_MM] * 3, "data_identifier": f"{VIEWS}_3d_fullres"}
    for name, patch, batch in ((VIEWS, VIEW, 4), (WHOLE, HEAD, 2)):
        own = {"3d_fullres": configuration | {"patch_size": patch, "batch_size": batch}}
        write_json(folder / f"{name}.json", plans | {"plans_name": name, "configurations": own})


def write_folds(folder: Path, args: Namespace) -> None:
    """Write folds of the subjects with an age: five, one for tuning, and draws of fewer for seeds and labels."""
    targets = load_targets(DATASET)
    both = targets.definitions["both"]
    values = both.values(targets.table)
    whole = make_splits(targets, both, values.index.tolist(), FOLDS, seed=1)
    learned = values.loc[whole[0]["train"]]
    tuned = draw(learned, both, TUNING_LABELS, seed=0)
    splits = [*whole, {"train": tuned, "val": sorted(set(learned.index) - set(tuned))}]
    for labels, seed in product(sorted(args.labels), args.seeds):
        splits += [
            {"train": draw(values.loc[split["train"]], both, labels, seed), "val": split["val"]} for split in whole
        ]
    write_json(folder / "splits_final.json", splits)


def draw(values: pd.DataFrame, definition, labels: int, seed: int) -> list[str]:
    """Draw so many subjects, of every fifth of the age as many."""
    rng = np.random.default_rng(seed)
    fifth = strata(definition, values)
    order = rng.permutation(len(values))
    place = pd.Series(fifth[order]).groupby(fifth[order]).cumcount().to_numpy()  # 0 for the first of each fifth
    chosen = order[np.argsort(place, kind="stable")][:labels]
    return sorted(values.index[chosen])


def all_runs(args: Namespace, trainers: list[str]) -> Iterator[Run]:
    """Return every training that is asked for; arms innermost, so that a part of the list compares them."""
    for seed, fold, labels in product(args.seeds, args.folds, args.labels):
        for arm in (SCRATCH, *trainers):
            yield Run(labels, arm, seed, fold, args.scratch_lr if arm == SCRATCH else args.lr)


def tuning_runs(args: Namespace, trainers: list[str]) -> Iterator[Run]:
    """Return trainings that compare learning rates."""
    for arm, rate, seed in product((SCRATCH, *trainers), args.tune, args.seeds):
        yield Run(TUNING_LABELS, arm, seed, TUNING, rate)


def split_number(run: Run, args: Namespace) -> int:
    """Return the number of a run's split in ``splits_final.json``."""
    if isinstance(run.fold, str):
        return FOLDS
    block = sorted(args.labels).index(run.labels) * len(args.seeds) + args.seeds.index(run.seed)
    return FOLDS * (1 + block) + 1 + run.fold


def results(folders: dict[str, Path], trainer: str, plans: str, fold: int | str) -> Path:
    """Return the folder of a fold in the results."""
    return folders["nnUNet_results"] / DATASET / f"{trainer}__{plans}__3d_fullres" / f"fold_{fold}"


def run_folder(run: Run, args: Namespace) -> Path:
    """Return where a training's results are kept: nnU-Net's own folder knows nothing of weights."""
    name = f"{run.labels}_{run.arm}_{args.endings}_lr{run.rate}_seed{run.seed}_fold{run.fold}"
    return args.o / "runs" / name


def train(run: Run, args: Namespace, checkpoints: dict[str, Path]) -> None:
    """Train and validate in this process, as ``nnUNetv2_train`` does, and put the results where they are kept."""
    from nnunetv2.paths import nnUNet_results
    from nnunetv2.run.run_training import run_training

    kept = run_folder(run, args)
    if (kept / "validation" / "predictions.csv").is_file():
        return
    name = "RegressionTrainer" + ("_scratch" if run.arm == SCRATCH else "")
    name += f"_{args.endings}_lr{run.rate}_seed{run.seed}_0pictures"
    weights = None if run.arm == SCRATCH else str(checkpoints[run.arm])
    fold = split_number(run, args)
    run_training(
        DATASET, "3d_fullres", fold, name, WHOLE, weights, disable_checkpointing=True, device=torch.device(args.device)
    )
    trained = results({"nnUNet_results": Path(str(nnUNet_results))}, name, WHOLE, fold)
    kept.mkdir(parents=True, exist_ok=True)
    for file in ("metrics.csv", "start.json", "validation"):
        (trained / file).rename(kept / file)


def predictions(run: Run, args: Namespace) -> Iterator[dict]:
    """Return rows of a training's validation cases, if it is done."""
    path = run_folder(run, args) / "validation" / "predictions.csv"
    if path.is_file():
        for row in pd.read_csv(path).to_dict("records"):
            for column in COLUMNS:
                found = {"truth": row[f"true_{column}"], "predicted": row[f"predicted_{column}"]}
                yield {**vars(run), "column": column, "case": row["case"], **found}


def probe(arm: str, checkpoint: Path | None, args: Namespace, folders: dict[str, Path]) -> Iterator[dict]:
    """Return rows of linear models on features of an encoder, or of the image."""
    features = kept_features(arm, checkpoint, args)
    targets = load_targets(DATASET)
    values = targets.definitions["both"].values(targets.table)
    splits = read_json(folders["nnUNet_preprocessed"] / DATASET / "splits_final.json")
    for seed, labels, column, fold in product(args.seeds, args.labels, COLUMNS, args.folds):
        run = Run(labels, arm, seed, fold, "")
        split = splits[split_number(run, args)]
        train, test = (features.loc[split[side]].to_numpy() for side in ("train", "val"))
        truth = values.loc[split["train"], column]
        if column == "male":
            logistic = LogisticRegressionCV(Cs=LOGISTIC_C, cv=3, max_iter=2000, scoring="neg_log_loss")
            said = make_pipeline(StandardScaler(), logistic).fit(train, truth).predict_proba(test)[:, 1]
        else:
            said = make_pipeline(StandardScaler(), RidgeCV(RIDGE_ALPHAS)).fit(train, truth).predict(test)
        for case, predicted in zip(split["val"], said, strict=True):
            found = {"truth": values.loc[case, column], "predicted": predicted}
            yield {**vars(run), "column": column, "case": case, **found}


def kept_features(arm: str, checkpoint: Path | None, args: Namespace) -> pd.DataFrame:
    """(subjects, F) features of all subjects with an age, kept in a file."""
    file = args.o / "features" / f"{arm.replace(' ', '_')}.csv"
    if not file.is_file():
        dataset = PreprocessedDataset.find(DATASET, WHOLE, "3d_fullres")
        targets = load_targets(DATASET)
        cases = targets.definitions["both"].values(targets.table).index.tolist()
        if arm.endswith(IMAGE):
            images = torch.from_numpy(np.stack([middle(dataset.image(case)) for case in cases]))
            found = torch.nn.functional.avg_pool3d(images, CUBE).flatten(1)
        else:
            found = pooled_features(dataset, checkpoint, cases)
        with atomic_write(file) as temporary:
            pd.DataFrame(found.numpy(), index=cases).to_csv(temporary)
    return pd.read_csv(file, index_col=0)


def middle(image: LazyImage) -> np.ndarray:
    """Return the part of an image (C, z, y, x) that a patch in its middle shows."""
    return crop_centred(image, np.array(image.shape[1:]) // 2, HEAD)


def pooled_features(dataset: PreprocessedDataset, checkpoint: Path | None, cases: list[str]) -> torch.Tensor:
    """(subjects, F) pooled features of an encoder, an untrained one without a checkpoint."""
    torch.manual_seed(0)
    unet = network_of_file(WHOLE, dataset.configuration_manager, 1, 1, deep_supervision=False)
    if checkpoint is not None:
        weights = network_weights(load_checkpoint(checkpoint), checkpoint)
        encoder_of(unet).load_state_dict(
            {name[8:]: value for name, value in weights.items() if name.startswith("encoder.")}
        )
    predictor = CasePredictor(pooled_encoder(unet, 1, STAGES, 0.0).eval(), dataset.patch_size, 0.5)
    return torch.cat(list(case_features(predictor, dataset, cases).values()))


def report(rows: pd.DataFrame, args: Namespace) -> None:
    """Write all predictions, and a table: metrics of every arm, and its difference to scratch with an interval.

    A metric is taken over all subjects of a seed, each predicted by the fold that did not see it, and averaged over the
    seeds. Intervals (95 %) draw subjects. Only subjects and seeds count that all arms have predicted.
    """
    rows.to_csv(args.o / "predictions.csv", index=False)
    lines = []
    for (column, labels), own in rows.groupby(["column", "labels"], sort=False):
        truth = own.groupby("case")["truth"].first()
        wide = own.pivot(index="case", columns=["arm", "seed"], values="predicted")
        seeds = [s for s in wide.columns.unique("seed") if wide.xs(s, axis=1, level="seed").notna().all(axis=None)]
        if not seeds:
            print(f"{column} of {labels} labels: no seed is done by all arms")
            continue
        arms = {arm: wide[arm][seeds].to_numpy() for arm in own["arm"].unique()}
        for metric, function, higher in METRICS[column]:
            known = {"labels": labels, "metric": metric, "seeds": len(seeds), "subjects": len(truth)}
            lines += [known | row for row in compare(function, higher, truth.to_numpy(), arms)]
    table = pd.DataFrame(lines)
    table.to_csv(args.table or args.o / "table.csv", index=False, float_format="%.4f")
    print(table.to_string(index=False, float_format="{:.3f}".format))


def compare(function, higher: bool, truth: np.ndarray, arms: dict[str, np.ndarray]) -> Iterator[dict]:
    """Return rows of the table: every arm, and what it gains over scratch on the same samples of subjects."""
    rng = np.random.default_rng(0)
    everyone = np.arange(len(truth))
    samples = [everyone, *(rng.choice(everyone, len(truth)) for _ in range(1000))]
    scores = {
        arm: np.array([over_seeds(function, truth[at], said[at]) for at in samples]) for arm, said in arms.items()
    }
    for arm, own in scores.items():
        row = {"arm": arm, "value": own[0]}
        row |= dict(zip(("low", "high"), np.nanpercentile(own[1:], [2.5, 97.5]), strict=True))
        if arm != SCRATCH:
            gain = (own - scores[SCRATCH]) * (1 if higher else -1)
            row |= {"gain": gain[0]}
            row |= dict(zip(("gain_low", "gain_high"), np.nanpercentile(gain[1:], [2.5, 97.5]), strict=True))
        yield row


def over_seeds(function, truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return mean over the seeds (columns) of a metric; NaN where all subjects are the same."""
    if len(set(truth)) < 2:
        return float("nan")
    return float(np.mean([function(truth, said) for said in predicted.T]))


def measured(rows: pd.DataFrame) -> dict[str, float]:
    """Return the metrics of the rows of one arm, mean over its seeds."""
    found: dict[str, float] = {}
    for column, own in rows.groupby("column"):
        wide = own.pivot(index="case", columns="seed", values="predicted")
        truth = own.groupby("case")["truth"].first().to_numpy()
        found |= {name: over_seeds(function, truth, wide.to_numpy()) for name, function, _ in METRICS[str(column)]}
    return found


if __name__ == "__main__":
    sys.exit(main())
