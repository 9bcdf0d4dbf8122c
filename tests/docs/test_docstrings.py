"""Sentences of docstrings are short."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
MAX_WORDS = 25
#: where a sentence of a docstring begins: paragraphs, items of lists and of sections
_BEGIN = re.compile(r"\n\s*\n|\n(?=\s*(?:- |\d+\. |[\w, *]+: ))")


def sentences(docstring: str) -> Iterator[str]:
    """Yield sentences without code blocks; names in backticks and what stands in brackets count as one word."""
    for block in _BEGIN.split(re.sub(r"(?m)^\s*>>>.*(\n.+)*|(?<=\n\n)    .*(\n    .*)*", "", docstring)):
        words = re.sub(r"``.*?``|`.*?`|\(.*?\)", "X", " ".join(block.split()))
        yield from re.split(r"(?<=[.!?;:])\s+", words)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["nnunet_alice", "trainers", "planners", "benchmarks"])
def test_sentences_of_docstrings_are_short(folder):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    files = {path: ast.walk(ast.parse(path.read_text())) for path in (TOP / folder).rglob("*.py")}
    documented = [
        (path, ast.get_docstring(node)) for path, nodes in files.items() for node in nodes if isinstance(node, kinds)
    ]
    found = [(path, sentence) for path, docstring in documented if docstring for sentence in sentences(docstring)]
    assert found
    assert not [(path.name, sentence) for path, sentence in found if len(re.findall(r"\S*\w\S*", sentence)) > MAX_WORDS]


def test_long_sentences_are_found_and_code_is_none():
    def longest(docstring: str) -> int:
        return max(len(sentence.split()) for sentence in sentences(docstring))

    long = "word " * 26
    assert longest(f"Do it.\n\nArgs:\n    a: {long}\n    b: two.") == 26
    assert longest(f"Do it.\n\n    python {long}\n    {long}\n\n>>> {long}\n{long}\n\nEnd (of {long}).") < 4
