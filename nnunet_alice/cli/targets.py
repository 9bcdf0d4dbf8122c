"""Store what ClassificationTrainer and RegressionTrainer are to predict of the cases of a dataset.

The table has one row a case. It is checked, and stored as targets.csv and targets.json in the dataset's raw and
preprocessed folders; a dataset may have several targets. Where the dataset has no splits_final.json yet, folds
are made: stratified by the target, and with all cases of a patient (--group) on one side.
"""

import argparse

EXAMPLE = "nnunet_alice targets -d 900 --table labels.csv --target age_years --task regression"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name of the dataset")
    parser.add_argument("--table", required=True, metavar="CSV", help="one row a case")
    parser.add_argument(
        "--target", required=True, nargs="+", metavar="COLUMN", help="what to predict; several labels or numbers"
    )
    parser.add_argument(
        "--task", required=True, choices=["classification", "multilabel", "regression", "survival"], help="what it is"
    )
    parser.add_argument("--event", metavar="COLUMN", help="for survival: 1 is an event, 0 censored")
    parser.add_argument("--id", metavar="COLUMN", help="column of case names [the first]")
    parser.add_argument("--group", metavar="COLUMN", help="column of patients, if some have several cases")
    parser.add_argument("--name", metavar="NAME", help="of the target, for -tr ..._target<NAME> [the column's letters]")
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="folds that are made [%(default)s]")
    parser.add_argument("--seed", type=int, default=12345, metavar="N", help="of the folds [%(default)s]")
    parser.add_argument("--new_splits", action="store_true", help="replace splits_final.json")


def run(args: argparse.Namespace) -> int:
    """Check, store, make folds, and print the next command."""
    from nnunet_alice.errors import InputError
    from nnunet_alice.nnunet_folders import dataset_name
    from nnunet_alice.targets.preparing import prepare_targets

    if (args.task == "survival") != (args.event is not None):
        raise InputError(
            "--event goes with --task survival: the column that holds 1 for an event and 0 for censored."
        ).about(option="--event")
    prepared = prepare_targets(
        dataset_name(args.d),
        args.table,
        [*args.target, *([args.event] if args.event else [])],
        args.task,
        name=args.name,
        id_column=args.id,
        group_column=args.group,
        folds=args.folds,
        seed=args.seed,
        new_splits=args.new_splits,
    )
    print(f"{args.task} of '{prepared.definition.name}': {prepared.labelled} of {prepared.cases} cases have it.")
    print(f"Stored: {', '.join(map(str, prepared.files))}")
    for line in prepared.summary:
        print(f"  {line}")
    print(f"Next: {prepared.command}")
    return 0
