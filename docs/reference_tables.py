"""Reference pages from the package itself: commands from argparse, trainers and the API from docstrings."""

import argparse
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnunet_alice
from nnunet_alice.cli import plan as plan_command
from nnunet_alice.cli import trainers as trainers_command
from nnunet_alice.cli.main import COMMANDS, build_parser
from nnunet_alice.discovery import classes_in, summary
from nnunet_alice.training.variants import endings_table

#: what lies behind the front door and is of use to programs, too; module -> names
FURTHER = {
    "nnunet_alice.dataset": ["PreprocessedDataset"],
    "nnunet_alice.planning.plans": ["plan_from_data", "move_target_plans"],
    "nnunet_alice.planning.preprocessing": ["preprocess_cases"],
    "nnunet_alice.matching.interface": ["Matcher", "Matches"],
    "nnunet_alice.matching.match_table": ["match_point"],
    "nnunet_alice.matching.index_dataset": ["index_dataset"],
    "nnunet_alice.features.extraction": ["extract"],
    "nnunet_alice.checkpoints.loading": ["load_checkpoint", "network_weights"],
    "nnunet_alice.pretraining.method": ["Method"],
}


def pages(folder: Path) -> str:
    """Return a list of the pages of a folder: title with a link, and the first sentence."""
    rows = []
    for path in sorted(folder.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        if path.name != "index.md" and title:
            paragraph = text[title.end() :].strip().partition("\n\n")[0].replace("\n", " ")
            rows.append(f"- [{title[1]}]({path.name}): {_first_sentence(paragraph)}")
    return "\n".join(rows)


def commands(_folder: Path) -> str:
    """Return one section a command: what it does, an example, a table of its arguments."""
    return "\n\n".join(_command(name) for name in COMMANDS)


def trainers(_folder: Path) -> str:
    """Return a table of all trainers."""
    found = classes_in(trainers_command.PACKAGE, nnUNetTrainer)
    return _classes("Trainer", {name: value for name, value in found.items() if name != trainers_command.BASE})


def endings(_folder: Path) -> str:
    """Return a table of the endings that trainers' names take."""
    rows = ((f"`{shown}`", _plain(meaning)) for shown, meaning in endings_table())
    return "\n".join([*table_head(("Ending", "What it changes")), *map(table_line, rows)])


def planners(_folder: Path) -> str:
    """Return a table of all planners."""
    return _classes("Planner", classes_in(plan_command.PACKAGE, ExperimentPlanner))


def front_door(_folder: Path) -> str:
    """Return one section a name of the package itself: how to import and call it, and its docstring."""
    return "\n\n".join(_entry(nnunet_alice.__name__, name) for name in nnunet_alice.FRONT_DOOR)


def api(_folder: Path) -> str:
    """Return one section an entry of :data:`FURTHER`, likewise."""
    return "\n\n".join(_entry(module, name) for module, names in FURTHER.items() for name in names)


def table_line(cells: Iterable) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def table_head(columns: Iterable) -> list[str]:
    """Return the first two lines of a Markdown table."""
    columns = list(columns)
    return [table_line(columns), table_line("---" for _ in columns)]


def _classes(heading: str, classes: Mapping[str, type]) -> str:
    """Return table of classes with the first line of their docstrings."""
    rows = ((f"`{name}`", _plain(summary(value))) for name, value in classes.items())
    return "\n".join([*table_head((heading, "What it does")), *map(table_line, rows)])


def _first_sentence(text: str) -> str:
    """Return text up to the first full stop (or colon) that ends a sentence."""
    return re.split(r"(?<=[.:!?])\s", text, maxsplit=1)[0].rstrip(".:")


def _command(name: str) -> str:
    """Return the section of one command."""
    parser = build_parser([name])
    action = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    command = action.choices[name]
    example = (command.epilog or "").removeprefix("Example: ")
    lines = [f"## {name}", "", *_description(command.description or ""), "", "```bash", example, "```", ""]
    arguments = [action for action in command._actions if not isinstance(action, argparse._HelpAction)]
    if arguments:
        lines += table_head(("Argument", "Meaning"))
        lines += [table_line((_argument(action), _meaning(command, action))) for action in arguments]
    return "\n".join(lines)


def _description(text: str) -> list[str]:
    """Return paragraphs of a command's docstring; a line that is itself a command stays one."""
    return [_plain(line) for line in inspect.cleandoc(text).splitlines() if not line.startswith("export ")]


def _argument(action: argparse.Action) -> str:
    """Return flags and values of an argument; what must be given is bold."""
    values = argparse.HelpFormatter("")._format_args(action, action.dest.upper())
    text = " ".join(part for part in (", ".join(action.option_strings), values) if part).replace("|", "\\|")
    return f"**`{text}`**" if action.required else f"`{text}`"


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return help of an argument with its default filled in."""
    return _plain(parser._get_formatter()._expand_help(action)) if action.help else ""


def _plain(text: str) -> str:
    """Return docstring text as Markdown: code spans, and no accidental markup."""
    return text.replace("``", "`").replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")


def _entry(module: str, name: str) -> str:
    """Return the section of one public object: how to import it, how to call it, its docstring."""
    value = getattr(importlib.import_module(module), name)
    lines = [f"## {name}", "", "```python", f"from {module} import {name}", "```", "", "```text", _call(name, value)]
    return "\n".join([*lines, "", inspect.getdoc(value) or "", "```"])


def _call(name: str, value: Callable) -> str:
    """Name and parameters with their defaults; types stand in the docstring or the source."""
    signature = inspect.signature(value)
    bare = [part.replace(annotation=part.empty) for part in signature.parameters.values()]
    return f"{name}{signature.replace(parameters=bare, return_annotation=signature.empty)}"
