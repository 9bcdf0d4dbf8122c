"""Run a Python command in this process, which alone holds locks: ``python alone.py DESCRIPTOR[,...] COMMAND ...``.

A training starts workers. Where it is killed they live on, and a lock that they had inherited would live on with them:
nobody could start the training again.

This file is run by its path and imports nothing of this package, so that the command finds what it finds without it.
"""

import os
import sys


def main() -> None:
    """Run the command of the arguments."""
    sys.path.pop(0)  # the folder of this file, whose names would hide those of other modules
    import runpy
    import shutil

    locks, program, *words = sys.argv[1:]
    keep_from_children([int(lock) for lock in locks.split(",")])
    script = shutil.which(program) or program
    sys.argv = [script, *words]
    sys.path.insert(0, os.path.dirname(script))  # noqa: PTH120  as Python does for a script
    runpy.run_path(script, run_name="__main__")


def keep_from_children(locks: list[int]) -> None:
    """Let no child of this process have these descriptors, neither one that is forked nor one that is started.

    Args:
        locks: descriptors.
    """
    for lock in locks:
        os.set_inheritable(lock, False)
    os.register_at_fork(after_in_child=lambda: _close(locks))


def _close(descriptors: list[int]) -> None:
    """Close descriptors and forget them: their numbers are free for other files, which children of a child need."""
    while descriptors:
        os.close(descriptors.pop())


if __name__ == "__main__":
    main()
