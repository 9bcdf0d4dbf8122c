"""`trainers`: a folder that the shell can take, and a list that comes from looking."""

import subprocess
import sys
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_alice.cli.main import main
from nnunet_alice.discovery import classes_in, package_folder, summary
from nnunet_alice.training.variants import endings_table

TRAINERS = Path(__file__).resolve().parents[2] / "trainers"


def test_stdout_is_the_folder_and_nothing_else(tmp_path):
    # Away from the checkout: `python -m` would import its nnunet_alice/, which lies beside trainers/ and not around it.
    command = [sys.executable, "-m", "nnunet_alice.cli.main", "trainers"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.endswith("\n") and result.stdout.count("\n") == 1
    assert Path(result.stdout.strip()).is_dir()
    assert Path(result.stdout.strip()) == package_folder("nnunet_alice.trainers")


def test_list_names_the_trainers_and_the_pattern(capsys):
    if not (TRAINERS / "alice.py").is_file():
        pytest.skip("trainers/alice.py does not exist")
    assert main(["trainers", "--list"]) == 0
    rows, endings = capsys.readouterr().out.split("\n\n")
    table = dict(row.split(maxsplit=1) for row in rows.splitlines())
    assert {"AliceTrainer", "AliceTrainer_noCASA", "AliceTrainer_smoke"} <= set(table)
    assert "PretrainingTrainer" not in table and "nnUNetTrainer" not in table
    assert all(len(text) > 10 for text in table.values())
    page = (TRAINERS.parent / "docs" / "reference" / "trainers.md").read_text()
    for shown, meaning in endings_table():
        assert f"  {shown:<17} {meaning}\n" in endings and f"| `{shown}` | {meaning} |" in page


def test_every_trainer_has_variants_of_any_length():
    trainers = classes_in("nnunet_alice.trainers", nnUNetTrainer)
    del trainers["PretrainingTrainer"]  # what the methods share
    for name, trainer in trainers.items():
        variant = getattr(sys.modules[trainer.__module__], f"{name}_7epochs")
        assert issubclass(variant, trainer) and variant.settings.run.epochs == 7


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two modules, and its base class."""
    folder = tmp_path / "found_by_looking"
    folder.mkdir()
    (folder / "__init__.py").write_text("class InInit(dict): pass\n")
    (folder / "first.py").write_text(
        "import abc, collections\nfrom collections import OrderedDict\n"
        'class B(dict):\n    """\n    Does b.\n\n    More.\n    """\n'
        "class A(B): pass\nclass _Hidden(B): pass\nclass Other: pass\n"
        "class Abstract(dict, abc.ABC):\n    @abc.abstractmethod\n    def f(self): ...\n"
    )
    (folder / "second.py").write_text(
        'from found_by_looking.first import B\nclass C(B):\n    "Does c."\nAlias = C\nnumber = 3\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "found_by_looking"
    for name in [name for name in sys.modules if name.startswith("found_by_looking")]:
        del sys.modules[name]


def test_classes_are_those_defined_in_the_modules(package):
    found = classes_in(package, dict)
    assert list(found) == ["B", "A", "C"]
    assert all(issubclass(cls, dict) for cls in found.values())


def test_summary_is_the_first_line_of_the_own_docstring(package):
    found = classes_in(package, dict)
    assert summary(found["B"]) == "Does b."
    assert summary(found["C"]) == "Does c."
    assert summary(found["A"]) == ""
