"""Who trains and who tests: test sets, nested draws of the labelled cases, and validation cases for tuning.

Where several cases are of one patient, all numbers count patients, and a patient comes with all of its cases.
"""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        groups: case of the pool -> its patient, who is drawn with all of its cases; empty for segmentations.
    """

    name: str
    pool: tuple[str, ...]
    test: tuple[str, ...]
    strata: Mapping[str, int] = field(default_factory=dict, compare=False)
    groups: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def patients(self) -> list[list[str]]:
        """Cases of each patient of the pool; each is a patient of its own where nobody says more."""
        return _patients(self.pool, self.groups)

    @property
    def unit(self) -> str:
        """What numbers count: ``case``, or ``patient`` where a patient has several."""
        return "case" if len(self.patients) == len(self.pool) else "patient"


def partitions(
    settings: Settings,
    cases: Sequence[str],
    own_split: Sequence[Mapping] | None,
    groups: Mapping[str, str] | None = None,
    without_target: Collection[str] = (),
) -> list[Partition]:
    """Return the divisions that the settings ask for.

    Args:
        settings: of the benchmark.
        cases: all preprocessed cases that can be used.
        own_split: the dataset's ``splits_final.json``, None if it has none.
        groups: case -> its patient, where cases are drawn by patients.
        without_target: preprocessed cases that cannot be used; splits may name them.

    Raises:
        InputError: the split asked for does not exist, names unknown cases, or leaves nobody to train or test on.
    """
    cases, groups = sorted(cases), groups or {}
    if settings.test.folds:
        found = _folds(settings, own_split)
    else:
        test = _fixed_test(settings, cases, groups)
        tested = set(test)
        found = [Partition("fixed", tuple(case for case in cases if case not in tested), test)]
    found = [_usable(partition, without_target, groups) for partition in found]
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
        there = len(partition.patients)
        if largest > there:
            raise InputError(
                f"'labels' asks for {counted(largest, partition.unit)}; split '{partition.name}' has {there} to train "
                "on; lower it."
            ).about(option="labels", value=largest)
    everything = labelled_number(ALL, found)
    if ALL in settings.labels and everything in settings.labels:
        raise InputError(
            f"'labels' names '{ALL}' and {everything}, which is the same here; leave one of them out."
        ).about(option="labels", value=everything)
    return found


def labelled_number(count: int | str, divisions: Sequence[Partition]) -> int:
    """Return the number of labelled cases or patients of a count in tables: of ``all`` the mean over folds, rounded.

    Folds differ by a case or so; one number keeps their runs together.
    """
    if isinstance(count, str):
        return round(float(np.mean([len(partition.patients) for partition in divisions])))
    return count


def labelled(partition: Partition, count: int | str, draw: int, seed: int) -> list[str]:
    """Return labelled cases of a draw, sorted; those of a smaller count are among those of a larger one.

    Args:
        partition: division of the cases.
        count: how many, or how many patients, or ``all``.
        draw: number of the draw.
        seed: of all draws.
    """
    patients = _shuffled(partition, draw, seed)
    return _cases_of(patients if isinstance(count, str) else patients[:count])


def tuning_split(partition: Partition, settings: Settings, draw: int) -> tuple[list[str], list[str]]:
    """Return training and validation cases of a tuning run, all from the pool.

    Raises:
        InputError: the pool is too small for both.
    """
    tuning = settings.tuning
    order = _shuffled(partition, draw, settings.seed)
    train, rest = order[: tuning.labels], order[tuning.labels :]
    if len(train) < tuning.labels or len(rest) < tuning.cases:
        raise InputError(
            f"Tuning wants {tuning.labels} labelled and {counted(tuning.cases, f'other {partition.unit}')} to validate "
            f"on, and there are {len(order)}; lower 'tuning', or give each arm one learning rate."
        ).about(option="tuning", value=len(order))
    return _cases_of(train), _cases_of(rest[: tuning.cases])


def _shuffled(partition: Partition, draw: int, seed: int) -> list[list[str]]:
    """Return cases of each patient, in the order of the draw."""
    number = 0 if partition.name == "fixed" else 1 + int(partition.name.removeprefix("fold"))
    patients = {cases[0]: cases for cases in partition.patients}
    order = [str(case) for case in np.random.default_rng([seed, number, draw]).permutation(list(patients))]
    seen: Counter[int] = Counter()
    place = {}
    for case in order:  # 0 for the first patient of each stratum, 1 for the second, ...
        stratum = partition.strata.get(case, -1)
        place[case] = seen[stratum] if stratum >= 0 else 0
        seen[stratum] += 1
    return [patients[case] for case in sorted(order, key=place.__getitem__)]


def _patients(cases: Sequence[str], groups: Mapping[str, str]) -> list[list[str]]:
    """Return the cases of each patient, in the order of their first ones."""
    found: dict[str, list[str]] = {}
    for case in cases:
        found.setdefault(groups.get(case, case), []).append(case)
    return list(found.values())


def _cases_of(patients: Sequence[Sequence[str]]) -> list[str]:
    return sorted(case for cases in patients for case in cases)


def _usable(partition: Partition, without_target: Collection[str], groups: Mapping[str, str]) -> Partition:
    """Return a division without cases that nothing can be learned from, with the patients of its pool."""
    pool, test = (
        tuple(case for case in part if case not in without_target) for part in (partition.pool, partition.test)
    )
    return replace(partition, pool=pool, test=test, groups={case: groups[case] for case in pool if case in groups})


def _fixed_test(settings: Settings, cases: list[str], groups: Mapping[str, str]) -> tuple[str, ...]:
    test = settings.test
    if test.file is not None:
        names = read_json(test.file)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{test.file} has to be a JSON list of case names.").about(path=test.file)
        return tuple(sorted(set(names)))
    patients = {cases[0]: cases for cases in _patients(cases, groups)}
    if test.cases is None or not 0 < test.cases < len(patients):
        unit = "cases" if len(patients) == len(cases) else "patients"
        raise InputError(f"'test' asks for {test.cases} {unit} of {len(patients)}; lower it.").about(
            option="test", value=test.cases
        )
    drawn = np.random.default_rng(settings.seed).choice(list(patients), test.cases, replace=False)
    return tuple(_cases_of([patients[str(case)] for case in drawn]))


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
