"""Errors of the program, asserted by class and fields; their sentences stand in ``test_sentences.py``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nnunet_alice.errors import AliceError

FIELDS = ("case", "path", "option", "value", "command", "column")


@contextmanager
def refused(kind: type[AliceError], **expected: Any) -> Iterator[pytest.ExceptionInfo[AliceError]]:
    """Expect an error of exactly this class.

    Args:
        kind: its class.
        expected: its fields. Of a path the last parts are enough; of a command, words that stand in it.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}: {error}"
    check_sentence(error)
    for name, wanted in expected.items():
        assert _fits(name, getattr(error, name), wanted), f"{name} is {getattr(error, name)!r}, not {wanted!r}: {error}"


def check_sentence(error: AliceError) -> None:
    """Make sure that a sentence stands on one line, is finished, and names the value of each field."""
    sentence = str(error)
    last_words = sentence.rpartition(": ")[2]  # a command that is typed as it stands has no full stop behind it
    assert sentence.endswith((".", "?")) or (error.command is not None and error.command in last_words), sentence
    assert "\n" not in sentence, sentence
    for name in FIELDS:
        field = getattr(error, name)
        said = field.name if isinstance(field, Path) else str(field)
        assert field is None or said in sentence or repr(field) in sentence, (
            f"The sentence does not name its {name} {said}: {sentence}"
        )


def _fits(name: str, found: Any, wanted: Any) -> bool:
    if found is None or wanted is None:
        return found is wanted
    if name == "path":
        parts = Path(wanted).parts
        return found.parts[-len(parts) :] == parts
    return wanted in found if name == "command" else found == wanted
