"""Refresh the generated parts of the pages: ``python docs/generate.py`` (``--check`` only says which are stale).

A generated part stands between ``<!-- generate: NAME ARGUMENTS -->`` and ``<!-- end -->``. NAME is one of
:data:`RENDERERS`. Arguments are words as in a shell; those with ``=`` are passed by name.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import reference_tables
import result_tables

DOCS = Path(__file__).resolve().parent
#: name of a part -> function of the page's folder and the arguments that returns Markdown
RENDERERS: dict[str, Callable[..., str]] = {
    "pages": reference_tables.pages,
    "commands": reference_tables.commands,
    "trainers": reference_tables.trainers,
    "endings": reference_tables.endings,
    "planners": reference_tables.planners,
    "front_door": reference_tables.front_door,
    "api": reference_tables.api,
    "report": result_tables.report,
    "means": result_tables.means,
    "classes": result_tables.classes,
    "arms": result_tables.arms,
    "seeds": result_tables.seeds,
    "targets": result_tables.targets,
    "data": result_tables.data,
    "registrations": result_tables.registrations,
    "overview": result_tables.overview,
}
_PART = re.compile(r"<!-- generate: (?P<call>.+?) -->\n(?P<text>.*?)<!-- end -->", re.DOTALL)


def refreshed(text: str, folder: Path) -> str:
    """Return a page with its generated parts made again.

    Args:
        text: the page.
        folder: where the page lies; files that a part names are relative to it.

    Raises:
        KeyError: a part has an unknown name.
    """

    def part(match: re.Match) -> str:
        name, *words = shlex.split(match["call"])
        positional = [word for word in words if "=" not in word]
        named = dict(word.split("=", 1) for word in words if "=" in word)
        made = RENDERERS[name](folder, *positional, **named)
        return f"<!-- generate: {match['call']} -->\n\n{made.strip()}\n\n<!-- end -->"

    return _PART.sub(part, text)


def stale_pages(docs: Path = DOCS) -> dict[Path, str]:
    """Return the pages that would change, with their new text."""
    old = {path: path.read_text(encoding="utf-8") for path in sorted(docs.rglob("*.md"))}
    return {path: new for path, text in old.items() if (new := refreshed(text, path.parent)) != text}


def main() -> int:
    """Refresh or check all pages; the exit status is 1 if a checked page is stale."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is stale")
    check = parser.parse_args().check
    stale = stale_pages()
    for path, text in stale.items():
        print(f"{path.relative_to(DOCS)} {'is stale' if check else 'refreshed'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
