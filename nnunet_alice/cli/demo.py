"""The whole workflow on phantoms: import, plan, anatomy, pretraining, fine-tuning, and the same without pretraining.

Takes less than 10 minutes on two idle CPU cores and needs no GPU and no data. Every step runs the command that you
would type; their output is in the folder's logs.
"""

import argparse

EXAMPLE = "nnunet_alice demo -o nnunet_alice_demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "-o", default="nnunet_alice_demo", metavar="DIR", help="new folder for everything [%(default)s]"
    )
    parser.add_argument(
        "--embedding",
        action="store_true",
        help="also train the anatomical embedding for a few minutes, and let it match the views instead of the atlas",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the phantoms [%(default)s]")


def run(args: argparse.Namespace) -> None:
    """Run the demo and print its table."""
    from nnunet_alice.demo import EMBEDDING, Demo, DemoSize

    asked = DemoSize(embedding=EMBEDDING if args.embedding else None)
    demo = Demo(args.o, asked, args.seed, lambda step: print(f"... {step}", flush=True))
    report = demo.run()
    size = demo.size
    print("\nCommands that ran (environment and logs in the folder):")
    for command in report.commands:
        print(f"  {command}")
    print("\nSeconds")
    for step, seconds in report.seconds.items():
        print(f"  {seconds:7.0f}  {step}")
    print(f"  {sum(report.seconds.values()):7.0f}  in all")
    print(
        f"\nDice on {size.test} test phantoms that no training saw ({size.training} labelled and {size.unlabelled} "
        f"unlabelled phantoms for training; {size.finetuning}, from scratch {size.scratch})"
    )
    runs = list(report.dice)
    print(f"  {'organ':14}" + "".join(f"{run:>14}" for run in runs))
    for organ in report.dice[runs[0]]:
        print(f"  {organ:14}" + "".join(f"{report.dice[run][organ]:14.3f}" for run in runs))
    print(f"  {'mean':14}" + "".join(f"{_mean(report.dice[run]):14.3f}" for run in runs))
    print(f"\nError of matching in mm, random body points of {size.pairs} pairs of unlabelled phantoms")
    print(report.matching.to_string(index=False, float_format="{:.2f}".format))
    gain = 100 * (_mean(report.dice[runs[0]]) - _mean(report.dice[runs[1]]))
    print(
        f"\nShown: with {size.training} labelled phantoms and the same short training, the pretrained network ends "
        f"{abs(gain):.0f} points of mean Dice {'above' if gain >= 0 else 'below'} the one from scratch. "
        "Not shown: real images, nnU-Net's full length, other seeds (docs/results)."
    )
    print("\nPictures")
    for name, path in report.pictures.items():
        print(f"  {name}: {path}")


def _mean(dice: dict[str, float]) -> float:
    return sum(dice.values()) / len(dice)
