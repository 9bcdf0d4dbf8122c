"""Trainers that differ by one number, made when nnU-Net asks for them by name instead of a class each."""

import re
from collections.abc import Mapping
from typing import Any

_EPOCHS = re.compile(r"(?P<base>\w+)_(?P<epochs>\d+)epochs?")


def epochs_variant(name: str, namespace: Mapping[str, Any]) -> type:
    """Class ``<Trainer>_<N>epochs``: a trainer of ``namespace`` that runs N epochs.

    Meant as a module's ``__getattr__``: nnU-Net finds trainers by ``hasattr(module, name)``.

    Args:
        name: the attribute that was asked for.
        namespace: the module's globals.

    Raises:
        AttributeError: the name is no such variant of a class in the module.
    """
    match = _EPOCHS.fullmatch(name)
    base = namespace.get(match["base"]) if match else None
    module = namespace["__name__"]
    epochs = int(match["epochs"]) if match else 0
    if not isinstance(base, type) or base.__module__ != module or not hasattr(base, "epochs") or epochs < 1:
        raise AttributeError(f"module '{module}' has no attribute '{name}'")
    summary = f"{base.__name__} for {epochs} epochs."
    return type(name, (base,), {"epochs": epochs, "__module__": module, "__doc__": summary})
