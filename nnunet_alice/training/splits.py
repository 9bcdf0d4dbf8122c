"""Cases that a split names and nobody has preprocessed; nnU-Net would end in the middle of its first batch."""

from collections.abc import Collection, Sequence

from nnunet_alice.errors import named
from nnunet_alice.words import counted


def absent_cases(split: Sequence[Sequence[str]], known: Collection[str]) -> list[str]:
    """Return the cases of a split that are not known, sorted.

    Args:
        split: training and validation cases.
        known: preprocessed cases.
    """
    return sorted({case for part in split for case in part} - set(known))


def sentence_on_absent_cases(absent: Sequence[str], where: str) -> str:
    """Return which cases are missing, for a message.

    Args:
        absent: from :func:`absent_cases`.
        where: the split's file and fold.
    """
    return f"{where} names {counted(len(absent), 'case')} that nobody has preprocessed ({named(absent)})"
