"""Report what a benchmark found: Dice, surface Dice and HD95, or AUC and R2, with intervals and tests against scratch.

Writes FOLDER/report: report.md, summary.csv, cases.csv (every case of every run), label_efficiency.png, examples.png.
May be run while the benchmark is still going; the report then says how many runs it has.
"""

import argparse

from nnunet_alice.cli.common import positive
from nnunet_alice.words import counted

EXAMPLE = "nnunet_alice report -i /results/hippocampus -np 8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("-i", "--input", required=True, metavar="FOLDER", help="folder of nnunet_alice benchmark")
    parser.add_argument(
        "--baseline",
        metavar="ARM",
        help="compare with this arm and write FOLDER/report_against_ARM (default: the benchmark's baseline, scratch)",
    )
    parser.add_argument("-np", type=positive(int), default=4, metavar="N", help="processes (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Report and print the means."""
    from nnunet_alice.benchmark.report import write_report

    report = write_report(args.input, args.np, baseline=args.baseline)
    rows = report.summary[(report.summary["metric"] == report.metric) & (report.summary["class"] == "mean")]
    baseline = args.baseline or "the baseline"
    for row in rows.itertuples():
        compared = "" if row.p != row.p else f", {row.difference:+.4f} against {baseline}, p {row.p:.2g}"
        run = f"{counted(row.labels, 'label')}, {row.percent} % of the run, {row.arm}"
        print(f"{run}: {report.title} {row.mean:.4f}{compared}")
    print(f"{report.done} of {counted(report.planned, 'run')}. Written: {report.folder / 'report.md'}")
