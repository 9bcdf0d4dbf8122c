"""The front door: the names of ``nnunet_alice``, what importing them costs, and the examples in their docstrings."""

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.example_workplace import example_workplace

import nnunet_alice

#: names that are functions; classes are shown by the examples of these
FUNCTIONS = [name for name in nnunet_alice.FRONT_DOOR if name.islower()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    with example_workplace(tmp_path_factory.mktemp("front_door")) as folder:
        yield folder


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_of_docstrings_hold(workplace, name):
    function = getattr(nnunet_alice, name)
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={"np": np})
    assert test.examples, f"{name} has no example"
    outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert not outcome.failed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_whatever_follows_the_second_argument_is_named(name):
    parameters = list(inspect.signature(getattr(nnunet_alice, name)).parameters.values())
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters[2:])


def test_type_checkers_see_the_names_where_they_are():
    tree = ast.parse(Path(nnunet_alice.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "importlib"]
    seen = {
        alias.asname: (node.module or "").removeprefix("nnunet_alice.")
        for node in imports
        if node.module != "typing"
        for alias in node.names
    }
    assert seen == nnunet_alice.FRONT_DOOR
    assert set(nnunet_alice.FRONT_DOOR) <= set(dir(nnunet_alice))


def test_unknown_names_are_no_attributes():
    with pytest.raises(AttributeError):
        nnunet_alice.open_datasets  # noqa: B018


def test_importing_the_package_is_quick_and_leaves_torch_alone():
    code = "import time; t = time.perf_counter(); import nnunet_alice; t = time.perf_counter() - t\n"
    code += "import sys; print(t, 'torch' in sys.modules, 'numpy' in sys.modules)"
    outcomes = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() for _ in range(3)
    ]
    assert min(float(seconds) for seconds, _, _ in outcomes) < 0.2
    assert all(loaded == ["False", "False"] for _, *loaded in outcomes)


def test_python_m_in_a_checkout_finds_the_trainers_beside_the_package():
    """``python -m`` puts its folder first, so that the checkout's package hides an installed one."""
    root = Path(__file__).parents[2]
    code = "from nnunet_alice.discovery import package_folder as f; print(f('nnunet_alice.trainers'))"
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(root / "trainers")
