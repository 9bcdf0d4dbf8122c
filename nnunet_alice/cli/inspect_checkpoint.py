"""Say what a checkpoint of ours holds: method, plans, data, what was trained, and how to fine-tune from it."""

import argparse

EXAMPLE = "nnunet_alice inspect fold_all/checkpoint_final.pth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", help="checkpoint (.pth) that a pretraining trainer of this package wrote")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> None:
    """Print the description."""
    import json

    from nnunet_alice.checkpoints.inspection import describe_checkpoint

    description = describe_checkpoint(args.checkpoint)
    if args.json:
        print(json.dumps(description, indent=2))
        return
    width = max(map(len, description))
    for name, value in description.items():
        lines = value if isinstance(value, list) else [value]
        for index, line in enumerate(lines):
            print(f"{name if index == 0 else '':<{width}}  {line}")
