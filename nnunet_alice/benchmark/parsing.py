"""Settings of a benchmark from YAML or flags: every entry is checked, and an error names it."""

import copy
import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from nnunet_alice.benchmark.settings import (
    ALL,
    DEVICES,
    FINE_TUNER,
    LOCATED_FINE_TUNER,
    Arm,
    Settings,
    TestCases,
    Tuning,
    check_baseline,
    wrong,
)
from nnunet_alice.errors import InputError, MissingFileError
from nnunet_alice.finetuning.parts import kept_epoch


class _TwiceError(yaml.YAMLError):
    """A mapping has a key twice, of which YAML would take the last without a word.

    Args:
        key: its name.
        line: of the second one, from 1.
    """

    def __init__(self, key: str, line: int) -> None:
        self.key, self.line = key, line
        super().__init__(key, line)


class _Loader(yaml.SafeLoader):
    """YAML where a key stands once, and 027 is a text: else it is an octal number, and dataset 23."""

    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {
        **yaml.SafeLoader.yaml_implicit_resolvers,
        "0": [("tag:yaml.org,2002:str", re.compile(r"0[0-9]+$")), *yaml.SafeLoader.yaml_implicit_resolvers["0"]],
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping as it is written, before others are merged into it."""
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, key in enumerate(keys):
            if key.value in (before.value for before in keys[:number]):
                raise _TwiceError(key.value, key.start_mark.line + 1)
        return node


#: a group of settings, a dataclass
PartT = TypeVar("PartT", bound=Any)


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """Return the content of a YAML (or JSON) file of settings, unchecked; relative paths in it count from its folder.

    Raises:
        InputError: the file is missing, is not a YAML mapping, or has a key twice.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist.").about(path=path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except _TwiceError as error:
        raise InputError(f"{path} has '{error.key}' twice, again in line {error.line}; keep one of them.").about(
            path=path, option=error.key
        ) from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not valid YAML ({reason}); mend it.").about(path=path) from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no 'key: value' settings.").about(path=path)
    return absolute_paths(content, path.parent)


def absolute_paths(content: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return settings, still unchecked, whose relative paths count from ``base``."""
    content = copy.deepcopy(content)
    arms, test = content.get("arms"), content.get("test")
    for arm in arms.values() if isinstance(arms, dict) else ():
        if isinstance(arm, dict) and "checkpoints" in arm:
            arm["checkpoints"] = [_absolute(entry, base) for entry in _listed(arm["checkpoints"])]
    for key in ("file", "split"):
        if isinstance(test, dict) and isinstance(test.get(key), str):
            test[key] = _absolute(test[key], base)
    return content


def parse_settings(content: Mapping[str, Any]) -> Settings:
    """Return checked settings.

    Args:
        content: keys are the attributes of :class:`Settings`; ``arms`` maps names to the attributes of :class:`Arm`.

    Raises:
        InputError: something is unknown, missing or senseless; the message names it.
    """
    _check_keys(content, Settings, "settings")
    content = {key: value for key, value in content.items() if value is not None}  # left blank: the default
    for key in ("dataset", "arms", "test"):
        if not content.get(key):
            raise wrong(key, f"The settings lack '{key}'.")
    content["dataset"] = str(content["dataset"])
    if not isinstance(content["arms"], Mapping):
        raise wrong(
            "arms", "'arms' has to be a mapping: a name, a colon and the arm's settings (or nothing) on each line."
        )
    content["arms"] = tuple(_arm(str(name), arm) for name, arm in content["arms"].items())
    content["test"] = _test(content["test"])
    content["tuning"] = _whole_numbers(_part(Tuning, content.get("tuning") or {}, "tuning"), "tuning")
    for key, kind in (("labels", _label_count), ("keep_at", _integer("keep_at"))):
        if key in content:
            content[key] = tuple(map(kind, _listed(content[key])))
    for key in ("draws", "draws_of_all", "seeds", "epochs", "iterations", "seed"):
        if key in content:
            content[key] = _integer(key)(content[key])
    if "tolerance_mm" in content:
        content["tolerance_mm"] = _number("tolerance_mm")(content["tolerance_mm"])
    settings = Settings(**content)
    _check(settings)
    return settings


def _arm(name: str, content: Mapping[str, Any] | None) -> Arm:
    if not isinstance(content or {}, Mapping):
        raise wrong(name, f"Arm '{name}' has to be a mapping, e.g. checkpoints: [a.pth], not {content!r}.", content)
    content = content or {}
    _check_keys(content, Arm, f"arm '{name}'")
    content = {key: value for key, value in content.items() if value is not None}
    content["checkpoints"] = tuple(str(entry) for entry in _listed(content.get("checkpoints")))
    rates = map(_number(f"arms: {name}: learning_rates"), _listed(content.get("learning_rates")))
    content["learning_rates"] = tuple(sorted(set(rates)))
    if not content["checkpoints"]:
        content.setdefault("trainer", f"{FINE_TUNER}_scratch")
    if "dataset" in content:
        content["dataset"] = str(content["dataset"])
    arm = Arm(name=str(name), **content)
    if not arm.name.replace("_", "").replace("-", "").isalnum():
        raise wrong("names", f"Arm '{name}': names are letters, digits, - and _, for they become folders.")
    if arm.learning_rates and (not arm.fine_tunes or min(arm.learning_rates) <= 0):
        raise wrong("learning_rates", f"Arm '{name}': learning_rates are above 0, and only {FINE_TUNER}s take them.")
    if arm.trainer.startswith(LOCATED_FINE_TUNER) != (arm.dataset is not None):
        raise wrong(
            "dataset",
            f"Arm '{name}': {LOCATED_FINE_TUNER} needs 'dataset', the one that nnunet_alice locate -d "
            "wrote, and no other trainer takes it.",
        )
    if arm.dataset is not None and arm.parts != "all":
        raise wrong("parts", f"Arm '{name}': {LOCATED_FINE_TUNER} takes a checkpoint as it is; leave out parts.")
    if arm.plans is not None and arm.dataset is None:
        raise wrong("plans", f"Arm '{name}': plans are those of an arm's own dataset; leave them out.")
    if arm.parts not in ("all", "encoder"):
        raise wrong("parts", f"Arm '{name}': parts is 'all' or 'encoder', not '{arm.parts}'.", arm.parts)
    return arm


def _test(content: Any) -> TestCases:
    content = {"cases": content} if isinstance(content, int | str) else content
    test = _part(TestCases, content, "test")
    if test.cases is not None:
        test = replace(test, cases=_integer("cases")(test.cases))
    if "folds" in content:
        test = replace(test, folds=tuple(map(_integer("folds"), _listed(content["folds"]))))
        if min(test.folds, default=0) < 0 or len(set(test.folds)) < len(test.folds):
            raise wrong("folds", f"'folds' of 'test' are numbers from 0, each once, not {list(test.folds)}.")
    for key in ("file", "split"):
        if not isinstance(getattr(test, key), str | None):
            raise wrong(key, f"'{key}' of 'test' is the name of a file, not {getattr(test, key)!r}.")
    if sum((test.cases is not None, test.file is not None, bool(test.folds))) != 1 or (test.split and not test.folds):
        raise wrong("test", "'test' needs exactly one of cases (a number), file (a JSON list) and folds (of a split).")
    return test


def _part(kind: type[PartT], content: Any, name: str) -> PartT:
    if not isinstance(content, Mapping):
        raise wrong(name, f"'{name}' has to be a mapping with {', '.join(field.name for field in fields(kind))}.")
    _check_keys(content, kind, name)
    return kind(**content)


def _whole_numbers(part: PartT, name: str) -> PartT:
    """Return a group of settings that are all numbers above 0."""
    values = {key: _integer(f"{name}: {key}")(value) for key, value in asdict(part).items()}
    for key, value in values.items():
        if value < 1:
            raise wrong(f"{name}: {key}", f"'{name}: {key}' has to be at least 1, not {value}.", value)
    return type(part)(**values)


def _check(settings: Settings) -> None:
    check_baseline(settings)
    for key in ("draws", "draws_of_all", "seeds", "epochs", "iterations"):
        value = getattr(settings, key)
        if value is not None and value < 1:
            raise wrong(key, f"'{key}' has to be at least 1.")
    if settings.seed < 0 or settings.tolerance_mm <= 0:
        raise wrong(
            "seed" if settings.seed < 0 else "tolerance_mm", "'seed' has to be at least 0 and 'tolerance_mm' above 0."
        )
    if settings.device not in DEVICES:
        raise wrong("device", f"'device' is one of {', '.join(DEVICES)}, not '{settings.device}'.", settings.device)
    if settings.epochs and settings.keep_at:
        at = [kept_epoch(percent, settings.epochs) for percent in settings.keep_at]
        if len({*at, settings.epochs}) <= len(at):
            raise wrong(
                "keep_at",
                f"'keep_at' {list(settings.keep_at)} means the epochs {at} of {settings.epochs}, which have to differ "
                "and to lie before the last; leave some out, or take more and shorter epochs.",
                at,
            )
    if not settings.labels or len(set(settings.labels)) < len(settings.labels):
        raise wrong("labels", "'labels' needs numbers of labelled cases, each once.")
    if not all(0 < percent < 100 for percent in settings.keep_at):
        raise wrong("keep_at", "'keep_at' holds per cent between 1 and 99.")
    if not isinstance(settings.mirroring, bool):
        raise wrong("mirroring", f"'mirroring' is true or false, not {settings.mirroring!r}.", settings.mirroring)
    others = [arm.name for arm in settings.arms if not arm.fine_tunes]
    if others and (settings.epochs or settings.iterations or settings.keep_at or not settings.mirroring):
        raise wrong(
            others[0],
            f"Arm '{others[0]}' does not use a {FINE_TUNER}: its length and mirroring cannot be set here and no "
            "checkpoints are kept on the way; leave out epochs, iterations and mirroring, and set keep_at: [].",
        )


def _check_keys(content: Mapping[str, Any], kind: type, where: str) -> None:
    known = [field.name for field in fields(kind)]
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}."
            raise wrong(key, f"Unknown '{key}' in {where}; {hint}")


def _label_count(value: Any) -> int | str:
    if value == ALL:
        return ALL
    try:
        count = _integer("labels")(value)
    except InputError:
        count = 0
    if count < 1:
        raise wrong("labels", f"'labels' are whole numbers above 0 or '{ALL}', not {value!r}.", value)
    return count


def _integer(name: str) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        number = _number(name, "whole number")(value)
        if number != int(number):
            raise wrong(name, f"'{name}' has to be a whole number, not {value!r}.", value)
        return int(number)

    return convert


def _number(name: str, kind: str = "number") -> Callable[[Any], float]:
    """Return a converter to a finite number; YAML takes 1e-3 for a text."""

    def convert(value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise wrong(name, f"'{name}' has to be a {kind}, not {value!r}.", value)
        return number

    return convert


def _listed(value: Any) -> list:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _absolute(path: str, base: Path) -> str:
    return str((base / os.path.expandvars(os.path.expanduser(str(path)))).absolute())  # noqa: PTH111  no error for "~x"
