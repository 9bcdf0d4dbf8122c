"""Trainers that differ by a few numbers, made when nnU-Net asks for them by name instead of a class each."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Suffix:
    """One ending of a trainer's name: the class attribute that it sets, and how its text becomes a value."""

    pattern: re.Pattern
    attribute: str
    value: Callable[[str], Any]


_LEARNING_RATE = _Suffix(re.compile(r"lr(\d+(?:\.\d+)?(?:e-?\d+)?)"), "learning_rate", float)
_SUFFIXES = (
    _Suffix(re.compile(r"(\d+)epochs?"), "epochs", int),
    _Suffix(re.compile(r"(\d+)iterations?"), "iterations", int),
    _LEARNING_RATE,
    _Suffix(re.compile(r"keep(\d+(?:-\d+)*)"), "keep_at", lambda text: tuple(map(int, text.split("-")))),
    _Suffix(re.compile(r"seed(\d+)"), "seed", int),
    _Suffix(re.compile(r"(\d+)experts"), "num_experts", int),
    _Suffix(re.compile(r"(noTTA)"), "test_time_mirroring", lambda _: False),
    _Suffix(re.compile(r"(AdamW)"), "optimizer_name", str),
)
#: endings whose numbers must be above 0
_POSITIVE = ("epochs", "iterations", "learning_rate", "num_experts")


def epochs_variant(name: str, namespace: Mapping[str, Any]) -> type:
    """Class ``<Trainer>_<N>epochs``: a trainer of ``namespace`` that runs N epochs.

    Further endings, in any order and each once, where the trainer has the attribute: ``_<N>iterations`` (an epoch),
    ``_lr<X>`` (peak learning rate, e.g. ``_lr3e-3``), ``_seed<N>``, ``_keep<P>-<P>`` (per cent of the run at which
    checkpoints are kept), ``_<N>experts``, ``_noTTA`` (validation without mirroring), ``_AdamW``. Meant as a module's
    ``__getattr__``: nnU-Net finds trainers by ``hasattr(module, name)``.

    Args:
        name: the attribute that was asked for.
        namespace: the module's globals.

    Raises:
        AttributeError: the name is no such variant of a class in the module.
    """
    module = namespace["__name__"]
    base_name, settings = _read(name, namespace)
    base = namespace.get(base_name) if settings else None
    known = isinstance(base, type) and base.__module__ == module and all(hasattr(base, key) for key in settings)
    if not known or any(settings.get(key, 1) <= 0 for key in _POSITIVE):
        raise AttributeError(f"module '{module}' has no attribute '{name}'")
    summary = f"{base.__name__} with {', '.join(f'{key} {value}' for key, value in settings.items())}."
    return type(name, (base,), {**settings, "__module__": module, "__doc__": summary})


def with_learning_rate(name: str, value: float) -> str:
    """Name of a trainer with another learning rate.

    Args:
        name: of the trainer, endings included.
        value: the peak learning rate.
    """
    endings = name.split("_")
    kept = [ending for ending in endings if not _LEARNING_RATE.pattern.fullmatch(ending)]
    return f"{'_'.join(kept)}_lr{value:.3g}"


def _read(name: str, namespace: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name without its endings, and the attributes that the endings set (none if one comes twice).

    A name in the namespace is read no further: ``DrasCLRTrainer_2experts`` is a class of its own.
    """
    settings: dict[str, Any] = {}
    rest = name
    while True:
        base, _, last = rest.rpartition("_")
        found = [(suffix, match[1]) for suffix in _SUFFIXES if (match := suffix.pattern.fullmatch(last))]
        if not base or not found or rest in namespace:
            return rest, settings
        suffix, text = found[0]
        if suffix.attribute in settings:
            return name, {}
        settings[suffix.attribute] = suffix.value(text)
        rest = base
