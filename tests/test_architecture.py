"""The rooms of the package, and which of them may import which; docs/concepts/architecture.md says what each is for."""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[1]
PACKAGE = "nnunet_alice"
#: modules at the top of the package that every room may import
COMMON = {
    "affine",
    "cropping",
    "dataset",
    "discovery",
    "errors",
    "files",
    "locks",
    "nnunet_folders",
    "parallel",
    "parts",
    "triples",
    "words",
}

#: Room -> rooms that it may import beside the common modules. A room stands below all that it imports, so that no
#: circle can be written down.
ARROWS: dict[str, set[str]] = {
    "common": set(),
    "methods": set(),
    "phantoms": set(),
    "anatomy": set(),
    "checkpoints": {"methods"},
    "importing": {"anatomy"},
    "matching": {"anatomy", "checkpoints", "methods", "phantoms"},
    "planning": {"anatomy", "importing", "matching"},
    "views": {"anatomy", "matching", "methods"},
    "training": {"methods"},
    "pictures": {"anatomy", "phantoms", "training", "views"},
    "pretraining": {"anatomy", "checkpoints", "matching", "methods", "pictures", "planning", "training", "views"},
    "finetuning": {"checkpoints", "methods", "training"},
    "coordinates": {"anatomy", "checkpoints", "importing", "methods", "planning"},
    "features": {"anatomy", "checkpoints", "coordinates", "importing", "matching", "methods", "views"},
    "targets": {
        "anatomy",
        "checkpoints",
        "features",
        "finetuning",
        "importing",
        "methods",
        "pictures",
        "training",
        "views",
    },
    "benchmark": {"anatomy", "checkpoints", "features", "finetuning", "importing", "pictures", "targets"},
    "publishing": {"anatomy", "checkpoints", "planning"},
    "demo": {"importing", "phantoms", "pictures"},
    "planners": {"anatomy", "planning", "views"},
    "trainers": {
        *("anatomy", "checkpoints", "coordinates", "finetuning", "matching", "methods"),
        *("pictures", "planning", "pretraining", "targets", "training", "views"),
    },
    "cli": {
        *("anatomy", "benchmark", "checkpoints", "coordinates", "demo", "features"),
        *("importing", "matching", "phantoms", "pictures", "planning", "publishing", "targets", "training"),
    },
    "train": {"cli"},
    # the package itself: names that are loaded when they are used
    "__init__": {"anatomy", "checkpoints", "features", "importing", "matching", "pretraining"},
}


def files_of_rooms() -> dict[str, list[Path]]:
    """Every room with its files; ``trainers`` and ``planners`` lie beside the package."""
    rooms: dict[str, list[Path]] = {}
    for path in sorted((TOP / PACKAGE).rglob("*.py")):
        name = path.relative_to(TOP / PACKAGE).parts[0].removesuffix(".py")
        rooms.setdefault("common" if name in COMMON else name, []).append(path)
    return rooms | {room: sorted((TOP / room).rglob("*.py")) for room in ("trainers", "planners")}


FILES = files_of_rooms()


def imported_modules(code: str) -> Iterator[str]:
    """Names of all modules that code imports, also inside functions and for types alone."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively"
            if node.module == PACKAGE:  # from nnunet_alice import ROOM
                yield from (f"{PACKAGE}.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""


def imported_rooms(modules: Iterable[str]) -> set[str]:
    """Rooms of the package among modules."""
    parts = [module.split(".") for module in modules]
    names = {part[1] if len(part) > 1 else "__init__" for part in parts if part[0] == PACKAGE}
    return {"common" if name in COMMON or name == "__version__" else name for name in names}


def test_imports_are_found_wherever_they_stand():
    code = f"import torch.nn\nfrom {PACKAGE} import views, __version__\ndef f():\n from {PACKAGE}.matching.a import b"
    modules = set(imported_modules(code))
    assert modules == {"torch.nn", f"{PACKAGE}.views", f"{PACKAGE}.__version__", f"{PACKAGE}.matching.a"}
    assert imported_rooms(modules) == {"views", "common", "matching"}


def test_every_room_is_in_the_table_and_stands_below_what_it_imports():
    assert set(ARROWS) == set(FILES)
    above: set[str] = set()
    for room, allowed in ARROWS.items():
        assert allowed <= above, f"{room} imports what stands below it: {allowed - above}"
        above.add(room)


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_run_one_way(room):
    allowed = ARROWS[room] | {room} | (set() if room == "methods" else {"common"})
    for path in FILES[room]:
        forbidden = imported_rooms(imported_modules(path.read_text(encoding="utf-8"))) - allowed
        assert not forbidden, f"{path.relative_to(TOP)} imports from {', '.join(sorted(forbidden))}"


def test_methods_need_torch_and_numpy_alone():
    for path in FILES["methods"]:
        packages = {module.partition(".")[0] for module in imported_modules(path.read_text(encoding="utf-8"))}
        foreign = packages - sys.stdlib_module_names - {"torch", "numpy", PACKAGE}
        assert not foreign, f"{path.relative_to(TOP)} imports {', '.join(sorted(foreign))}"
