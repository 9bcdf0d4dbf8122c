"""Age and sex from brain T1, 20 and 60 labelled subjects: scratch, pretrained and linear probe, one command.

    python benchmarks/brain_age.py -i Dataset062_BrainT1 -o FOLDER

Imports all 165 scans, plans them at 4.5 mm with a small network, pretrains on all of them without labels, and trains
``RegressionTrainer`` (age) and ``ClassificationTrainer`` (sex) on the 75 subjects whose age and sex are known: five
folds, several seeds. A seed of fine-tuning draws the 20 labelled subjects of a fold, too. The probe is a ridge or
logistic regression on the pretrained encoder's pooled features. Start it again after an interruption: only what is
missing is done. ``--part 1/2`` and ``--part 2/2`` share the trainings among two processes.
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
from label_efficiency import IN_TRAINING, ON_CPU, call, on_cpu, pretrain
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnunet_alice.anatomy.geometry import load_geometry
from nnunet_alice.checkpoints.loading import load_checkpoint, network_weights
from nnunet_alice.checkpoints.networks import network_of_file
from nnunet_alice.dataset import PreprocessedDataset
from nnunet_alice.features.probe import LOGISTIC_C, RIDGE_ALPHAS
from nnunet_alice.files import atomic_write, read_json, write_json
from nnunet_alice.methods.unets import encoder_of
from nnunet_alice.targets.definitions import load_targets
from nnunet_alice.targets.network import pooled_encoder
from nnunet_alice.targets.splits import make_splits, strata
from nnunet_alice.targets.windows import CasePredictor

DATASET = "Dataset062_BrainT1"
#: plans of the pretraining (small views) and of the whole head, which share the preprocessed images
VIEWS, WHOLE = "BrainPlans", "BrainWholePlans"
SPACING_MM, VIEW, HEAD = 4.5, [24, 32, 32], [40, 56, 56]
FEATURES, STRIDES = [8, 16, 32, 64], [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
FOLDS = 5
#: target -> (column, task, trainer, metric, higher is better)
TARGETS = {
    "age": ("age_years", "regression", "RegressionTrainer", "mae", False),
    "sex": ("sex", "classification", "ClassificationTrainer", "auc", True),
}
SCRATCH, PROBE, UNTRAINED = "scratch", "probe", "untrained encoder"


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        target: of ``TARGETS``.
        labels: labelled subjects that it sees.
        arm: ``scratch``, or a pretraining trainer.
        seed: of the training, and of the draw of subjects.
        fold: that is predicted.
    """

    target: str
    labels: int
    arm: str
    seed: int
    fold: int


def main() -> int:
    """Run the steps that are not done, then write the tables."""
    from argparse import ArgumentParser, RawDescriptionHelpFormatter

    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("-i", type=Path, required=True, metavar="FOLDER", help="Dataset062_BrainT1")
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER", help="for everything that is made")
    parser.add_argument("-np", default="2", help="processes [2]")
    parser.add_argument("-device", default="cpu", help="for every training [cpu]")
    pretraining = ["AliceTrainer_atlas_20epochs_50iterations", "DrasCLRTrainer_20epochs_50iterations"]
    parser.add_argument("--trainers", nargs="+", default=pretraining, help=f"that pretrain [{' '.join(pretraining)}]")
    parser.add_argument("--pretraining_seed", default="1", help="[1]")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), help="[age sex]")
    parser.add_argument("--labels", nargs="+", type=int, default=[20, 60], help="labelled subjects [20 60]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of fine-tuning [1 2 3]")
    parser.add_argument("--folds", nargs="+", type=int, default=list(range(FOLDS)), help="[0 1 2 3 4]")
    parser.add_argument("--endings", default="10epochs_30iterations", help="length of a training [%(default)s]")
    parser.add_argument("--scratch_lr", default="1e-3", help="learning rate from scratch [%(default)s]")
    parser.add_argument("--lr", default="1e-3", help="learning rate of fine-tuning [%(default)s]")
    parser.add_argument("--part", default="1/1", help="share of the trainings [1/1]")
    args = parser.parse_args()
    on_cpu(args.device, ON_CPU)
    folders = set_folders(args.o)
    prepare(args, folders)
    trainers = [f"{name}_seed{args.pretraining_seed}" for name in args.trainers]
    pretrain(DATASET, VIEWS, args.trainers, [args.pretraining_seed], args.device)
    on_cpu(args.device, IN_TRAINING)
    checkpoints = {name: results(folders, name, VIEWS, "all") / "checkpoint_final.pth" for name in trainers}
    part, parts = map(int, args.part.split("/"))
    for run in list(all_runs(args, trainers))[part - 1 :: parts]:
        train(run, args, folders, checkpoints)
    rows = [row for run in all_runs(args, trainers) for row in predictions(run, args, folders)]
    rows += [row for name, path in checkpoints.items() for row in probe(f"{PROBE} {name}", path, args, folders)]
    rows += list(probe(f"{PROBE} {UNTRAINED}", next(iter(checkpoints.values())), args, folders, untrained=True))
    report(pd.DataFrame(rows), args.o)
    return 0


def prepare(args: Namespace, folders: dict[str, Path]) -> None:
    """Import, plan and preprocess all scans; targets, folds and anatomy."""
    base = folders["nnUNet_preprocessed"] / DATASET
    call(
        "nnunet_alice", "import", "-i", args.i / "images", "-d", 62, "-n", "BrainT1", "--channel", "T1", "-np", args.np
    )
    if not (base / "prepared").is_file():
        call("nnunet_alice", "plan", "-d", 62, "-pl", "AlicePlannerSmall", "--no_preprocess", "-np", args.np)
        write_plans(base)
        call("nnUNetv2_preprocess", "-d", 62, "-plans_name", VIEWS, "-c", "3d_fullres", "-np", args.np)
        for target, (column, task, *_) in TARGETS.items():
            words = ("--table", args.i / "subjects.csv", "--target", column, "--task", task, "--name", target)
            call("nnunet_alice", "targets", "-d", 62, *words)
        (base / "prepared").touch()
    write_folds(base, args)
    if any(not trainer.startswith("MIM") for trainer in args.trainers):
        landmarks = ("--landmark_patch_mm", 60, "--landmark_step_mm", 40)
        call("nnunet_alice", "anatomy", "-d", 62, "-p", VIEWS, "-c", "3d_fullres", *landmarks, "-np", args.np)


def write_plans(folder: Path) -> None:
    """Two plans of one network and one spacing: views for the pretraining, and the whole head."""
    plans = read_json(folder / "AliceSmallPlans.json")
    configuration = plans["configurations"]["3d_fullres"]
    network = configuration["architecture"]["arch_kwargs"]
    stages = len(FEATURES)
    network |= {"n_stages": stages, "features_per_stage": FEATURES, "strides": STRIDES}
    network |= {"kernel_sizes": [[3, 3, 3]] * stages, "n_conv_per_stage_decoder": [1] * (stages - 1)}
    network |= {"n_conv_per_stage": [2] * stages}
    configuration |= {"spacing": [SPACING_MM] * 3, "data_identifier": f"{VIEWS}_3d_fullres"}
    for name, patch, batch in ((VIEWS, VIEW, 6), (WHOLE, HEAD, 2)):
        own = {"3d_fullres": configuration | {"patch_size": patch, "batch_size": batch}}
        write_json(folder / f"{name}.json", plans | {"plans_name": name, "configurations": own})


def write_folds(folder: Path, args: Namespace) -> None:
    """Folds of the subjects with an age; behind the five, for every seed and number of labels, draws of fewer."""
    targets = load_targets(DATASET)
    age = targets.definitions["age"]
    values = age.values(targets.table)
    whole = make_splits(targets, age, values.index.tolist(), FOLDS, seed=1)
    splits = list(whole)
    for labels, seed in product(sorted(args.labels), args.seeds):
        splits += [
            {"train": draw(values.loc[split["train"]], age, labels, seed), "val": split["val"]} for split in whole
        ]
    write_json(folder / "splits_final.json", splits)


def draw(values: pd.DataFrame, age, labels: int, seed: int) -> list[str]:
    """So many subjects, of every fifth of the age as many."""
    rng = np.random.default_rng(seed)
    fifth = strata(age, values)
    order = rng.permutation(len(values))
    place = pd.Series(fifth[order]).groupby(fifth[order]).cumcount().to_numpy()  # 0 for the first of each fifth
    chosen = order[np.argsort(place, kind="stable")][:labels]
    return sorted(values.index[chosen])


def all_runs(args: Namespace, trainers: list[str]) -> Iterator[Run]:
    """Every training that is asked for; arms innermost, so that a part of the list compares them."""
    for seed, labels, target, fold in product(args.seeds, args.labels, args.targets, args.folds):
        for arm in (SCRATCH, *trainers):
            yield Run(target, labels, arm, seed, fold)


def split_number(run: Run, args: Namespace) -> int:
    """Number of a run's split in ``splits_final.json``."""
    block = sorted(args.labels).index(run.labels) * len(args.seeds) + args.seeds.index(run.seed)
    return FOLDS * (1 + block) + run.fold


def results(folders: dict[str, Path], trainer: str, plans: str, fold: int | str) -> Path:
    """Folder of a fold in the results."""
    return folders["nnUNet_results"] / DATASET / f"{trainer}__{plans}__3d_fullres" / f"fold_{fold}"


def run_folder(run: Run, args: Namespace, folders: dict[str, Path]) -> Path:
    """Where a training's results are kept: nnU-Net's own folder knows nothing of weights."""
    name = f"{run.target}_{run.labels}_{run.arm}_{args.endings}_seed{run.seed}_fold{run.fold}"
    return args.o / "runs" / name


def train(run: Run, args: Namespace, folders: dict[str, Path], checkpoints: dict[str, Path]) -> None:
    """Train and validate, and put the results where they are kept."""
    kept = run_folder(run, args, folders)
    if (kept / "validation" / "predictions.csv").is_file():
        return
    scratch = run.arm == SCRATCH
    name = TARGETS[run.target][2] + ("_scratch" if scratch else "")
    name += f"_target{run.target}_{args.endings}_lr{args.scratch_lr if scratch else args.lr}_seed{run.seed}_0pictures"
    weights = [] if scratch else ["-pretrained_weights", checkpoints[run.arm]]
    # one folder of results a process: two arms of one name may train at the same time
    os.environ["nnUNet_results"] = str(args.o.absolute() / "training" / kept.name)
    Path(os.environ["nnUNet_results"]).mkdir(parents=True, exist_ok=True)
    fold = split_number(run, args)
    words = [DATASET, "3d_fullres", fold, "-tr", name, "-p", WHOLE, "-device", args.device, *weights]
    call("nnUNetv2_train", *words)
    trained = results({"nnUNet_results": Path(os.environ["nnUNet_results"])}, name, WHOLE, fold)
    kept.mkdir(parents=True, exist_ok=True)
    for file in ("metrics.csv", "start.json", "validation"):
        (trained / file).rename(kept / file)
    os.environ["nnUNet_results"] = str(folders["nnUNet_results"])


def predictions(run: Run, args: Namespace, folders: dict[str, Path]) -> Iterator[dict]:
    """Rows of a training's validation cases, if it is done."""
    path = run_folder(run, args, folders) / "validation" / "predictions.csv"
    if not path.is_file():
        return
    column, task, *_ = TARGETS[run.target]
    table = pd.read_csv(path)
    classes = sorted(name for name in table if name.startswith("probability_"))
    said = table[f"predicted_{column}"] if task == "regression" else table[classes[-1]]
    truth = table[f"true_{column}"]
    truth = truth if task == "regression" else ("probability_" + truth == classes[-1]).astype(float)
    for case, true, predicted in zip(table["case"], truth, said, strict=True):
        yield {**vars(run), "case": case, "truth": true, "predicted": predicted}


def probe(
    arm: str, checkpoint: Path, args: Namespace, folders: dict[str, Path], untrained: bool = False
) -> Iterator[dict]:
    """Rows of linear models on pooled features of an encoder."""
    features = pooled_features(arm, checkpoint, args, untrained)
    targets = load_targets(DATASET)
    splits = read_json(folders["nnUNet_preprocessed"] / DATASET / "splits_final.json")
    for seed, labels, target, fold in product(args.seeds, args.labels, args.targets, args.folds):
        run = Run(target, labels, arm, seed, fold)
        values = targets.definitions[target].values(targets.table).iloc[:, 0]
        split = splits[split_number(run, args)]
        train, test = (features.loc[split[side]].to_numpy() for side in ("train", "val"))
        if TARGETS[target][1] == "regression":
            model = make_pipeline(StandardScaler(), RidgeCV(RIDGE_ALPHAS)).fit(train, values[split["train"]])
            said = model.predict(test)
        else:
            logistic = LogisticRegressionCV(Cs=LOGISTIC_C, cv=3, max_iter=2000, scoring="neg_log_loss")
            model = make_pipeline(StandardScaler(), logistic).fit(train, values[split["train"]])
            said = model.predict_proba(test)[:, 1]
        for case, predicted in zip(split["val"], said, strict=True):
            yield {**vars(run), "case": case, "truth": values[case], "predicted": predicted}


@torch.no_grad()
def pooled_features(arm: str, checkpoint: Path, args: Namespace, untrained: bool) -> pd.DataFrame:
    """(subjects, F) pooled features of all subjects with an age, kept in a file."""
    file = args.o / "features" / f"{arm.replace(' ', '_')}.csv"
    if not file.is_file():
        dataset = PreprocessedDataset.find(DATASET, WHOLE, "3d_fullres")
        torch.manual_seed(0)
        unet = network_of_file(checkpoint, dataset.configuration_manager, 1, 1, deep_supervision=False)
        if not untrained:
            weights = network_weights(load_checkpoint(checkpoint), checkpoint)
            encoder_of(unet).load_state_dict(
                {name[8:]: value for name, value in weights.items() if name.startswith("encoder.")}
            )
        predictor = CasePredictor(pooled_encoder(unet, 1, 2, 0.0).eval(), dataset.patch_size, 0.5)
        targets = load_targets(DATASET)
        cases = targets.definitions["age"].values(targets.table).index
        found = [predictor.case_features(dataset.image(c), load_geometry(dataset, c)).mean[0].numpy() for c in cases]
        with atomic_write(file) as temporary:
            pd.DataFrame(np.stack(found), index=cases).to_csv(temporary)
    return pd.read_csv(file, index_col=0)


def report(rows: pd.DataFrame, folder: Path) -> None:
    """Write all predictions, and a table: metrics of every arm, and its difference to scratch with an interval.

    A metric is taken over all subjects of a seed, each predicted by the fold that did not see it, and averaged over the
    seeds. Intervals (95 %) draw subjects.
    """
    rows.to_csv(folder / "predictions.csv", index=False)
    lines = []
    for (target, labels), own in rows.groupby(["target", "labels"]):
        truth = own.groupby("case")["truth"].first()
        arms = {
            arm: part.pivot(index="case", columns="seed", values="predicted").reindex(truth.index)
            for arm, part in own.groupby("arm", sort=False)
        }
        if SCRATCH in arms:
            lines += [{"target": target, "labels": labels, **row} for row in compare(*TARGETS[target][3:], truth, arms)]
    table = pd.DataFrame(lines)
    table.to_csv(folder / "table.csv", index=False)
    print(table.to_string(index=False, float_format="{:.3f}".format))


def compare(metric: str, higher: bool, truth: pd.Series, arms: dict[str, pd.DataFrame]) -> Iterator[dict]:
    """Rows of the table: every arm, and what it gains over scratch on the subjects that both have."""
    rng = np.random.default_rng(0)
    for arm, table in arms.items():
        both = np.flatnonzero(table.notna().all(axis=1) & arms[SCRATCH].notna().all(axis=1))
        samples = [both, *(rng.choice(both, len(both)) for _ in range(1000))]
        scores = [[measure(metric, truth, said, at) for at in samples] for said in (table, arms[SCRATCH])]
        gains = (np.array(scores[0]) - np.array(scores[1])) * (1 if higher else -1)
        low, high = np.nanpercentile(gains[1:], [2.5, 97.5])
        row = {"arm": arm, "seeds": table.shape[1], "subjects": len(both), "metric": metric, "value": scores[0][0]}
        yield row | {"gain_over_scratch": gains[0], "low": low, "high": high}


def measure(metric: str, truth: pd.Series, predicted: pd.DataFrame, at: np.ndarray) -> float:
    """Mean over the seeds of a metric of some subjects; NaN where it is not defined."""
    true, said = truth.to_numpy()[at], predicted.to_numpy()[at]
    if metric == "mae":
        return float(np.abs(said - true[:, None]).mean())
    if len(set(true)) < 2:
        return float("nan")
    return float(np.mean([roc_auc_score(true, said[:, seed]) for seed in range(said.shape[1])]))


if __name__ == "__main__":
    sys.exit(main())
