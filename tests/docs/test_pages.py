"""Pages: commands in them are understood, code compiles, links resolve, sentences are short."""

import argparse
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from nnunet_alice.benchmark.parsing import parse_settings
from nnunet_alice.cli.main import COMMANDS, build_parser

TOP = Path(__file__).resolve().parents[2]
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").rglob("*.md"))]
#: most words of a sentence; the rule says 25, and code, tables and generated parts are not counted
MAX_WORDS = 25
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_GENERATED = re.compile(r"<!-- generate: .*?<!-- end -->", re.DOTALL)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_SEPARATORS = {"&&", "||", ";", "|", "\n", "&"}


def name_of(page: Path) -> str:
    """Path of a page, for the tests' names."""
    return str(page.relative_to(TOP))


def blocks(page: Path, *languages: str) -> list[str]:
    """Code of a page in these languages."""
    return [code for language, code in _BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def commands(shell: str) -> list[list[str]]:
    """Words of every command of a shell block, those in ``$(...)`` too; variables become the number 7."""
    shell = re.sub(r"\\\n", " ", shell)
    inner = re.findall(r"\$\(([^()]*)\)", shell)
    shell = re.sub(r"\$\([^()]*\)|\$\{[^}]*\}|\$\w+", "7", shell)
    found: list[list[str]] = [[]]
    for line in shell.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for word in [*lexer, "\n"]:
            if word in _SEPARATORS:
                found.append([])
            else:
                found[-1].append(word)
    found = [words[next((i for i, word in enumerate(words) if "=" not in word), 0) :] for words in found if words]
    return found + [words for code in inner for words in commands(code)]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def sentences(page: Path) -> list[str]:
    """Sentences of a page's own prose: no code blocks, tables, headings, generated parts or pictures."""
    text = _GENERATED.sub("\n\n", _BLOCK.sub("\n\n", page.read_text(encoding="utf-8")))
    text = re.sub(r"^(\||#|!\[|\[\w+\]: ).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "code", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)|\[([^\]]*)\]\[\w+\]", r"\1\2", text)
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:-|\d+\.) )", text)
    return [part for text in paragraphs for part in re.split(r"(?<=[.:;?!])\**\s+", " ".join(text.split())) if part]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_shell_blocks_parse(page):
    if (bash := shutil.which("bash")) is None:
        pytest.skip("no bash")
    for code in blocks(page, "bash", "sh"):
        outcome = subprocess.run([bash, "-n"], input=code, capture_output=True, text=True)
        assert outcome.returncode == 0, f"{outcome.stderr}\n{code}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_understood(page, capsys):
    for words in [words for code in blocks(page, "bash", "sh") for words in commands(code)]:
        if words[:1] != ["nnunet_alice"]:
            continue
        assert words[1] in COMMANDS or words[1] in ("COMMAND", "--help"), f"{page}: no command {words[1]}"
        if words[1] in COMMANDS:
            try:
                build_parser([words[1]]).parse_args(words[1:])
            except SystemExit as error:
                assert error.code == 0, f"{' '.join(words)}: {capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_trainers_exist(page):
    from nnunet_alice.trainers import (
        alice,
        anatomical_embedding,
        classification,
        drasclr,
        drasclr_finetuning,
        finetuning,
    )

    modules = (alice, anatomical_embedding, classification, drasclr, drasclr_finetuning, finetuning)
    parser = argparse.ArgumentParser()
    parser.add_argument("-tr", default="nnUNetTrainer")
    for words in [words for code in blocks(page, "bash", "sh") for words in commands(code)]:
        if words and words[0] in ("nnUNetv2_train", "nnUNetv2_predict"):
            trainer = parser.parse_known_args(words)[0].tr
            known = trainer.startswith("nnUNetTrainer") or any(hasattr(module, trainer) for module in modules)
            known |= any(f"class {trainer.partition('_')[0]}(" in code for code in blocks(page, "python"))
            assert known, f"{page} names {trainer}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_and_yaml_blocks_are_sound(page):
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")
    for code in blocks(page, "yaml"):
        for settings in yaml.safe_load_all(code):
            if "arms" in settings:
                parse_settings(settings)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page):
    for link in _LINK.findall(_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        file, _, anchor = link.partition("#")
        if file.startswith("http"):
            continue
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), f"{page} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_sentences_are_short(page):
    long = [sentence for sentence in sentences(page) if len(sentence.split()) > MAX_WORDS]
    assert not long, "\n".join(long)


def test_every_page_is_reached_from_the_index():
    reached, waiting = set(), [TOP / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = _LINK.findall(page.read_text(encoding="utf-8"))
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links if not link.startswith("http")}
        waiting += [target for target in targets - reached if target.suffix == ".md" and target not in waiting]
    assert set(PAGES[2:]) <= reached


def test_readme_says_first_what_this_is():
    text = (TOP / "README.md").read_text(encoding="utf-8")
    first = text.partition("\n")[2].partition("![")[0]
    assert len(first.split()) <= 60
    assert not re.search(r"\d", first)
    assert len(text.splitlines()) <= 90


def test_commands_of_a_shell_block_are_found():
    code = 'export A=$(one --two)\nB=1 three "four five" \\\n  six && seven  # eight\n'
    assert commands(code) == [["export", "A=7"], ["three", "four five", "six"], ["seven"], ["one", "--two"]]
