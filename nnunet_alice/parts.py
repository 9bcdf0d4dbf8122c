"""A share of a dataset's cases, for array jobs: ``--part 3/20`` does every twentieth case, from the third on."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass

HELP = "do only this share of the cases, e.g. 3/20; run all parts, then once more without --part, which sums up"


@dataclass(frozen=True)
class Part:
    """One of several shares of equal size, within one case. All parts together are all cases, each once.

    Attributes:
        number: of this part, from 1.
        of: how many parts there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Read ``i/n``, as a type of an argument parser.

        Raises:
            argparse.ArgumentTypeError: it is not of this form, or i is not in 1, ..., n.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise argparse.ArgumentTypeError(f"'{text}' is not a part such as 3/20")
        return cls(int(number), int(of))

    def share(self, cases: Iterable[str]) -> list[str]:
        """Return cases of this part: of all names in alphabetical order, every n-th."""
        return sorted(cases)[self.number - 1 :: self.of]

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def add_part_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--part`` to a command."""
    parser.add_argument("--part", type=Part.parse, metavar="I/N", help=HELP)
