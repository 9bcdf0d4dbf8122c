"""Who trains and who tests: test sets, nested draws of the labelled cases, and validation cases for tuning."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnunet_alice.benchmark.settings import ALL, Settings
from nnunet_alice.errors import InputError, named
from nnunet_alice.files import read_json
from nnunet_alice.words import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Partition:
    """One division of the cases.

    Attributes:
        name: ``fixed``, or ``fold<N>``.
        pool: cases that may be labelled, sorted.
        test: test cases, sorted; none is in ``pool``.
        strata: case of the pool -> stratum of its target, which draws show evenly; empty for segmentations.
        groups: case of the pool -> its patient, whom tuning never puts on both sides; empty for segmentations.
    """

    name: str
    pool: tuple[str, ...]
    test: tuple[str, ...]
    strata: Mapping[str, int] = field(default_factory=dict, compare=False)
    groups: Mapping[str, str] = field(default_factory=dict, compare=False)


def partitions(settings: Settings, cases: Sequence[str], own_split: Sequence[Mapping] | None) -> list[Partition]:
    """Return the divisions that the settings ask for.

    Args:
        settings: of the benchmark.
        cases: all preprocessed cases.
        own_split: the dataset's ``splits_final.json``, None if it has none.

    Raises:
        InputError: the split asked for does not exist, names unknown cases, or leaves nobody to train or test on.
    """
    cases = sorted(cases)
    if settings.test.folds:
        found = _folds(settings, own_split)
    else:
        test = _fixed_test(settings, cases)
        found = [Partition("fixed", tuple(case for case in cases if case not in set(test)), test)]
    for partition in found:
        unknown = sorted({*partition.pool, *partition.test} - set(cases))
        if unknown:
            raise InputError(
                f"Split '{partition.name}' names {counted(len(unknown), 'case')} not among the "
                f"{len(cases)} preprocessed ones: {named(unknown)}; preprocess them, or take them out of the split."
            ).about(case=unknown[0], value=len(unknown))
        unused = sorted(set(cases) - {*partition.pool, *partition.test})
        if unused:
            logger.warning(
                "Split '%s' names %d of the %d preprocessed cases; not used: %s.",
                partition.name, len(cases) - len(unused), len(cases), named(unused),
            )  # fmt: skip
        if not partition.test or not partition.pool or set(partition.pool) & set(partition.test):
            raise InputError(
                f"Split '{partition.name}' has no test case, none to train on, or one that is both."
            ).about(value=partition.name)
        largest = max((count for count in settings.labels if isinstance(count, int)), default=0)
        if largest > len(partition.pool):
            raise InputError(
                f"'labels' asks for {largest} cases; split '{partition.name}' has {len(partition.pool)} to train on."
            ).about(option="labels", value=largest)
    everything = labelled_number(ALL, found)
    if ALL in settings.labels and everything in settings.labels:
        raise InputError(
            f"'labels' names '{ALL}' and {everything}, which is the same here; leave one of them out."
        ).about(option="labels", value=everything)
    return found


def labelled_number(count: int | str, divisions: Sequence[Partition]) -> int:
    """Return the number of labelled cases that stands for a count in tables: of ``all`` the mean over folds, rounded.

    Folds differ by a case or so; one number keeps their runs together.
    """
    if isinstance(count, str):
        return round(float(np.mean([len(partition.pool) for partition in divisions])))
    return count


def labelled(partition: Partition, count: int | str, draw: int, seed: int) -> list[str]:
    """Return labelled cases of a draw, sorted; those of a smaller count are among those of a larger one.

    Args:
        partition: division of the cases.
        count: how many, or ``all``.
        draw: number of the draw.
        seed: of all draws.
    """
    return sorted(_shuffled(partition, draw, seed)[: len(partition.pool) if isinstance(count, str) else count])


def tuning_split(partition: Partition, settings: Settings, draw: int) -> tuple[list[str], list[str]]:
    """Return training and validation cases of a tuning run, all from the pool.

    Raises:
        InputError: the pool is too small for both.
    """
    tuning = settings.tuning
    order = _shuffled(partition, draw, settings.seed)
    train = order[: tuning.labels]
    seen = {partition.groups.get(case, case) for case in train}
    rest = [case for case in order[tuning.labels :] if partition.groups.get(case, case) not in seen]
    if len(train) < tuning.labels or len(rest) < tuning.cases:
        raise InputError(
            f"Tuning wants {tuning.labels} labelled and {tuning.cases} validation cases of other patients, and there "
            f"are {len(train) + len(rest)}; lower 'tuning', or give each arm one learning rate."
        ).about(option="tuning", value=len(train) + len(rest))
    return sorted(train), sorted(rest[: tuning.cases])


def _shuffled(partition: Partition, draw: int, seed: int) -> list[str]:
    number = 0 if partition.name == "fixed" else 1 + int(partition.name.removeprefix("fold"))
    order = [str(case) for case in np.random.default_rng([seed, number, draw]).permutation(partition.pool)]
    seen: Counter[int] = Counter()
    place = {}
    for case in order:  # 0 for the first case of each stratum, 1 for the second, ...
        stratum = partition.strata.get(case, -1)
        place[case] = seen[stratum] if stratum >= 0 else 0
        seen[stratum] += 1
    return sorted(order, key=place.__getitem__)


def _fixed_test(settings: Settings, cases: list[str]) -> tuple[str, ...]:
    test = settings.test
    if test.file is not None:
        names = read_json(test.file)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{test.file} has to be a JSON list of case names.").about(path=test.file)
        return tuple(sorted(set(names)))
    if test.cases is None or not 0 < test.cases < len(cases):
        raise InputError(f"'test' asks for {test.cases} cases of {len(cases)}.").about(option="test", value=test.cases)
    return tuple(sorted(map(str, np.random.default_rng(settings.seed).choice(cases, test.cases, replace=False))))


def _folds(settings: Settings, own_split: Any) -> list[Partition]:
    split = read_json(settings.test.split) if settings.test.split else own_split
    if split is None:
        raise InputError(
            "The dataset has no splits_final.json yet; give 'split' a file, or 'cases' a number of test cases."
        ).about(option="split")
    where = settings.test.split or "splits_final.json"
    _check_form(split, where)
    if max(settings.test.folds) >= len(split):
        raise InputError(
            f"'test' names fold {max(settings.test.folds)}, and the split has {counted(len(split), 'fold')}."
        ).about(option="test", value=max(settings.test.folds))
    return [
        Partition(f"fold{fold}", tuple(sorted(split[fold]["train"])), tuple(sorted(split[fold]["val"])))
        for fold in settings.test.folds
    ]


def _check_form(split: Any, where: str) -> None:
    """Refuse what is not of the form of ``splits_final.json``."""
    for fold in split if isinstance(split, list) else [None]:
        for key in ("train", "val"):
            names = fold.get(key) if isinstance(fold, dict) else None
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise InputError(
                    f"{where} has to be a JSON list of folds, each with lists 'train' and 'val' of names."
                ).about(value=where)
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise InputError(f"{where} names {twice} twice in '{key}' of a fold; leave one out.").about(
                    case=twice, option=key
                )
