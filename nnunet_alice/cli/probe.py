"""Cross-validated linear probe: how well a linear model reads a label off frozen case features.

Logistic regression, ridge, or a Cox model; standardisation and the search of the penalty happen inside each training
fold. The metrics' 95 % intervals come from a bootstrap over cases. Survival needs pip install "nnunet_alice[survival]".
"""

import argparse
import re

EXAMPLE = "nnunet_alice probe --features features.npz --table labels.csv --target severity --task regression"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--features", required=True, metavar="NPZ", help="what nnunet_alice features wrote")
    parser.add_argument("--table", required=True, metavar="CSV", help="one row a case")
    parser.add_argument("--target", required=True, metavar="COLUMN", help="what to predict; for survival the time")
    parser.add_argument("--task", required=True, choices=["classification", "regression", "survival"])
    parser.add_argument("--event", metavar="COLUMN", help="for survival: 1 is an event, 0 censored")
    parser.add_argument(
        "--group", metavar="COLUMN", help="folds keep rows with the same value together, e.g. the scans of a patient"
    )
    parser.add_argument("--id", metavar="COLUMN", help="column of case names (default: the first)")
    parser.add_argument("--folds", type=int, default=5, help="outer folds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of folds and bootstrap (default: %(default)s)")
    parser.add_argument(
        "-o", metavar="PREFIX", help="writes PREFIX_metrics.csv, _predictions.csv and .png (default: probe_COLUMN)"
    )


def run(args: argparse.Namespace) -> int:
    """Probe, print the metrics, write tables and plot."""
    from nnunet_alice.features.probe import probe
    from nnunet_alice.features.probe_data import load_features, load_table
    from nnunet_alice.files import atomic_write
    from nnunet_alice.pictures.probe import draw_probe

    data = load_table(
        args.table, *load_features(args.features), args.target, args.task, args.event, args.id, args.group
    )
    result = probe(data, args.task, args.folds, args.seed)
    sizes = result.predictions["fold"].value_counts().sort_index().tolist()
    penalty = "C" if args.task == "classification" else "alpha"
    print(f"{args.task} of '{args.target}' from {data.features.shape[1]} features of {len(data.cases)} cases")
    if data.groups is not None:
        print(f"{len(set(data.groups))} groups by '{args.group}', kept together in folds and intervals")
    print(
        f"{args.folds} folds of {sizes} cases, seed {args.seed}; {penalty}: "
        + ", ".join(f"{p:g}" for p in result.penalties)
    )
    for row in result.metrics.itertuples():
        print(f"  {row.metric}: {row.value:.3f} (95 % interval {row.low:.3f} to {row.high:.3f})")
    prefix = args.o or "probe_" + re.sub(r"[^\w.-]+", "_", args.target)  # a column may be called anything
    for name, table in (("metrics", result.metrics), ("predictions", result.predictions)):
        with atomic_write(f"{prefix}_{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    title = ", ".join(f"{row.metric} {row.value:.2f}" for row in result.metrics.itertuples())
    draw_probe(result.predictions, args.task, f"{prefix}.png", f"{args.target}: {title}")
    print(f"Written: {prefix}_metrics.csv, {prefix}_predictions.csv, {prefix}.png")
    return 0
