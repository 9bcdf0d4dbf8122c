"""Settings as frozen dataclasses within frozen dataclasses: change some along their paths, list them all."""

from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass, replace
from typing import Any, TypeVar

SettingsT = TypeVar("SettingsT")

_RECORDED = "recorded"


def unrecorded(default: Any) -> Any:
    """Return a dataclass field that :func:`flat` leaves out: a run may be continued with a different value."""
    return field(default=default, metadata={_RECORDED: False})


def changed(settings: SettingsT, changes: Mapping[str, Any]) -> SettingsT:
    """Return a copy of a tree of dataclasses with other values.

    Args:
        settings: a frozen dataclass; its fields may be frozen dataclasses.
        changes: dotted path -> value, e.g. ``{"run.epochs": 10, "method.casa": False}``.

    Raises:
        TypeError: there is no such field.
    """
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        if rest:
            inner.setdefault(name, {})[rest] = value
        else:
            own[name] = value
    own |= {name: changed(getattr(settings, name), below) for name, below in inner.items()}
    return replace(settings, **own)  # type: ignore[type-var]  # mypy cannot say "a dataclass"


def has_setting(settings: Any, path: str) -> bool:
    """Return whether a tree of dataclasses has a value at a dotted path."""
    for name in path.split("."):
        if not is_dataclass(settings) or name not in {entry.name for entry in fields(settings)}:
            return False
        settings = getattr(settings, name)
    return True


def flat(*settings: Any) -> dict[str, Any]:
    """Return all recorded values of trees of dataclasses by the names of their fields, without the paths.

    Raises:
        ValueError: two fields have one name.
    """
    values: dict[str, Any] = {}
    for tree in settings:
        for entry in fields(tree):
            if not entry.metadata.get(_RECORDED, True):
                continue
            value = getattr(tree, entry.name)
            own = flat(value) if is_dataclass(value) else {entry.name: value}
            if twice := own.keys() & values.keys():
                raise ValueError(f"Two settings are called {', '.join(sorted(twice))}.")
            values |= own
    return values
