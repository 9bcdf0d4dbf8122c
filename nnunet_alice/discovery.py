"""Finds the classes that live in ``trainers/`` and ``planners/`` by looking, so that no list can go stale."""

import importlib
import importlib.util
import inspect
import os
import pkgutil
from pathlib import Path


def package_folder(package: str) -> Path:
    """Return the folder of a package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"There is no package {package}.")
    return Path(next(iter(spec.submodule_search_locations)))


def trainer_folders() -> str:
    """Return ``nnUNet_extTrainer`` for commands: our trainers, then the folders that the variable names already."""
    others = [folder for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if folder]
    return os.pathsep.join(dict.fromkeys([str(package_folder("nnunet_alice.trainers")), *others]))


def classes_in(package: str, base: type) -> dict[str, type]:
    """Return subclasses of ``base`` that are defined in the modules of ``package``.

    Names that start with an underscore and abstract classes are left out, and so are those that are merely
    imported, and second names.

    Args:
        package: dotted name, e.g. ``nnunet_alice.trainers``.
        base: class that they derive from.

    Returns:
        name -> class, in the order of modules and of definition.
    """
    found = {}
    for module_info in pkgutil.iter_modules([str(package_folder(package))]):
        module = importlib.import_module(f"{package}.{module_info.name}")
        for name, value in vars(module).items():
            own = inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
            if own and value.__name__ == name and not name.startswith("_") and not inspect.isabstract(value):
                found[name] = value
    return found


def summary(cls: type) -> str:
    """Return the first line of a class's own docstring; empty if it has none."""
    return (inspect.cleandoc(cls.__doc__) if cls.__doc__ else "").partition("\n")[0]
