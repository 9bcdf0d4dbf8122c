"""What several commands share: exit statuses, lists of cases that failed, numbers as arguments."""

import argparse
from collections.abc import Callable, Iterable

from nnunet_alice.errors import SOME_FAILED
from nnunet_alice.parallel import Outcomes
from nnunet_alice.parts import Part

#: Exit status of a command whose reader went away (``| head``), as shells have it.
NO_READER = 141
#: Cases that are named on screen; the report has all.
_NAMED = 20


def name_some(status: str, reasons: Iterable[tuple[str, str]]) -> None:
    """Print the first cases of a status and why they have it.

    Args:
        status: e.g. ``failed``.
        reasons: case and reason.
    """
    reasons = list(reasons)
    for case, reason in reasons[:_NAMED]:
        print(f"  {status}: {case}: {reason}")
    if len(reasons) > _NAMED:
        print(f"  ... and {len(reasons) - _NAMED} more")


def say_outcomes(name: str, outcomes: Outcomes, done: str, where: object, part: Part | None = None) -> int:
    """Print how it went with all cases, and why some failed; return the exit status.

    Args:
        name: of the dataset or folder.
        outcomes: of its cases.
        done: what was done with them, e.g. ``indexed``.
        where: file or folder of the results or of the report.
        part: of the cases, after which something is left to do.
    """
    print(f"{name}: {outcomes.sentence(done)}: {where}")
    name_some("failed", outcomes.failed.items())
    if part is not None:
        print(f"Part {part} is done. When all {part.of} are, run the same without --part (and without --overwrite).")
    return SOME_FAILED if outcomes.failed else 0


def positive(kind: type) -> Callable[[str], int | float]:
    """Return a parser of numbers above 0 for ``argparse``.

    Args:
        kind: ``int`` or ``float``.
    """

    def parse(text: str) -> int | float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse
