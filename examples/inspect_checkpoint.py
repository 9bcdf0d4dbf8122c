"""List what pretraining checkpoints hold: method, data, network, and how to fine-tune from them.

    python examples/inspect_checkpoint.py fold_all/checkpoint_final.pth

Files that this package did not write are named with the reason.
"""

import sys

import nnunet_alice


def main(*checkpoints: str) -> dict[str, dict]:
    """Print and return file -> its description."""
    described = {}
    for path in checkpoints:
        try:
            described[path] = nnunet_alice.describe_checkpoint(path)
        except RuntimeError as error:  # every error of the package is one
            print(f"{path}: {error}")
            continue
        print(path)
        for name, value in described[path].items():
            lines = value if isinstance(value, list) else [value]
            print(f"  {name:<18}{lines[0]}", *(f"{'':<20}{line}" for line in lines[1:]), sep="\n")
    return described


if __name__ == "__main__":
    main(*sys.argv[1:])
