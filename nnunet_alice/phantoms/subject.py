"""Subjects: one body each, known to the last parameter, with the true counterpart of every point."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from nnunet_alice.errors import InputError
from nnunet_alice.phantoms.anatomy import LABELS, organic
from nnunet_alice.phantoms.body import Appearance, paint
from nnunet_alice.phantoms.deformation import CANONICAL_CENTRE_MM, Deformation, random_deformation
from nnunet_alice.phantoms.disease import DISEASES, LESION_HU, Disease, Lesion

# Range along z that each scan covers, in canonical mm: (bottom, top), and how much it varies at a cut end.
_Z_RANGES_MM = {"torso": (-12.0, 388.0), "chest": (195.0, 388.0), "abdomen_pelvis": (-12.0, 232.0)}
_CUT_JITTER_MM = 18.0
_END_JITTER_MM = 8.0
_SEARCH_MM = 9.0
# Of many scanners: strength of the contrast agent, standard deviation of the noise.
_ENHANCEMENTS, _NOISES_HU = (0.0, 1.3), (15.0, 60.0)
FIELDS_OF_VIEW = tuple(_Z_RANGES_MM)

# Streams of randomness of one seed: changing the field of view or the disease leaves the body as it is.
_BODY, _FIELD, _DISEASE, _LOOK, NOISE_STREAM, _POPULATION, _SCAN = range(7)


@dataclass(frozen=True)
class Subject:
    """A phantom person and the scan that is made of it.

    Attributes:
        seed: what the subject was drawn from, and the seed of the scanner's noise.
        field_of_view: one of ``FIELDS_OF_VIEW``.
        field_low_mm, field_high_mm: corners (z, y, x) of the scanned box in the subject's mm.
        deformation: pull-back map from the subject to the canonical body.
        appearance: how its tissues look.
        disease: what is wrong with it.
        size_scale: factor on all lengths.
    """

    seed: int
    field_of_view: str
    field_low_mm: tuple[float, ...]
    field_high_mm: tuple[float, ...]
    deformation: Deformation
    appearance: Appearance
    disease: Disease
    size_scale: float = 1.0

    def sees(self, points_mm: np.ndarray) -> np.ndarray:
        """Return whether (..., 3) points of the subject lie in its field of view; (...) bool."""
        points = np.asarray(points_mm)
        return np.all((points >= self.field_low_mm) & (points <= self.field_high_mm), axis=-1)

    def to_dict(self) -> dict[str, Any]:
        """Return everything about the subject in plain types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Subject":
        """Rebuild from :meth:`to_dict`, also after a trip through JSON."""
        look = content["appearance"]
        return cls(
            seed=content["seed"],
            field_of_view=content["field_of_view"],
            field_low_mm=tuple(content["field_low_mm"]),
            field_high_mm=tuple(content["field_high_mm"]),
            deformation=Deformation.from_dict(content["deformation"]),
            appearance=Appearance(**{**look, "texture_offset": tuple(look["texture_offset"])}),
            disease=Disease.from_dict(content["disease"]),
            size_scale=content["size_scale"],
        )


def make_subject(
    seed: int,
    *,
    field_of_view: str = "torso",
    disease: str | Disease = "none",
    severity: float | None = None,
    size_scale: float = 1.0,
    many_scanners: bool = False,
) -> Subject:
    """Draw one subject.

    The body depends on the seed alone: the same seed with a different field of view or disease is the same person.

    Args:
        seed: any whole number from 0.
        field_of_view: ``torso``, or cut to ``chest`` or ``abdomen_pelvis`` (where exactly varies by seed).
        disease: a kind out of ``DISEASES``, or a finished :class:`Disease`.
        severity: of the disease, in [0, 1]; drawn when not given.
        size_scale: factor on all lengths; 1 is a short torso of 400 mm, 1.5 an adult's.
        many_scanners: draw contrast agent (from none to strong) and dose widely; without it all scans are about
            portal venous and of one dose.

    Raises:
        InputError: an unknown field of view or disease, or a severity outside [0, 1].
    """
    if field_of_view not in _Z_RANGES_MM:
        raise InputError(
            f"There is no phantom field of view '{field_of_view}'; choose one of {', '.join(FIELDS_OF_VIEW)}."
        ).about(option="field of view", value=field_of_view)
    deformation = random_deformation(np.random.default_rng([seed, _BODY]), size_scale)
    low, high = _draw_field(np.random.default_rng([seed, _FIELD]), deformation, field_of_view, size_scale)
    rng = np.random.default_rng([seed, _LOOK])
    appearance = Appearance(
        enhancement=round(float(rng.uniform(0.85, 1.15)), 4),
        lung_shift_hu=round(float(rng.normal(0, 12)), 2),
        texture_offset=tuple(rng.uniform(0, 32, 3).round(3).tolist()),
        noise_hu=round(float(rng.uniform(9, 16)), 2),
    )
    if many_scanners:
        scan = np.random.default_rng([seed, _SCAN])
        enhancement, noise_hu = scan.uniform(*_ENHANCEMENTS), scan.uniform(*_NOISES_HU)
        appearance = replace(appearance, enhancement=round(enhancement, 4), noise_hu=round(noise_hu, 2))
    if not isinstance(disease, Disease):
        disease = make_disease(np.random.default_rng([seed, _DISEASE]), disease, severity)
    return Subject(seed, field_of_view, low, high, deformation, appearance, disease, size_scale)


def make_population(
    seeds: Iterable[int], *, cut_share: float = 0.25, disease_share: float = 0.0, many_scanners: bool = False
) -> dict[str, Subject]:
    """Draw subjects of mixed fields of view and health, named ``phantom00000`` by their seed.

    (The name has no ``_0000`` in it, which nnU-Net would read as a channel.)

    Args:
        seeds: one for each subject.
        cut_share: share of the subjects whose scan is cut at the chest or above the pelvis.
        disease_share: share of the subjects with a disease; half of these have lesions, the others a diffuse change.
        many_scanners: see :func:`make_subject`.
    """
    population = {}
    for seed in seeds:
        rng = np.random.default_rng([seed, _POPULATION])
        cut, ill = rng.random(2)
        field = str(rng.choice(FIELDS_OF_VIEW[1:])) if cut < cut_share else "torso"
        kind = str(rng.choice(DISEASES[1:], p=[0.5, 0.25, 0.25])) if ill < disease_share else "none"
        population[f"phantom{seed:05d}"] = make_subject(
            seed, field_of_view=field, disease=kind, many_scanners=many_scanners
        )
    return population


def corresponding_point(points_mm: np.ndarray, subject_a: Subject, subject_b: Subject) -> np.ndarray:
    """Return the same anatomical point in a different subject: the truth that matching is measured against.

    Args:
        points_mm: (..., 3) points (z, y, x) in the mm of ``subject_a``, inside its body.
        subject_a, subject_b: from whom, to whom.

    Returns:
        (..., 3) points in the mm of ``subject_b``, exact to 1e-5 mm; they may lie outside its field of view
        (see :meth:`Subject.sees`).
    """
    return subject_b.deformation.from_canonical(subject_a.deformation.to_canonical(points_mm))


def labels_at(points_mm: np.ndarray, subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Return organ (value of ``LABELS``) and membership of the body at (..., 3) points of a subject, without any grid.

    Returns:
        labels (...) uint8 and body (...) bool.
    """
    canonical = subject.deformation.to_canonical(points_mm)
    _, labels, body = paint(canonical.reshape(-1, 3).T, subject.appearance, subject.disease)
    return labels.reshape(canonical.shape[:-1]), body.reshape(canonical.shape[:-1])


def sample_points(subject: Subject, count: int, rng: np.random.Generator, organ: str | None = None) -> np.ndarray:
    """Draw points inside the body (or one organ) and inside the field of view.

    Args:
        subject: whose body.
        count: how many points.
        rng: source of randomness.
        organ: a name out of ``LABELS``; the whole body if not given.

    Returns:
        (count, 3) points (z, y, x) in the subject's mm.

    Raises:
        InputError: the field of view shows nothing of the organ.
    """
    low, high = np.array(subject.field_low_mm), np.array(subject.field_high_mm)
    # Look on a coarse grid first: a gallbladder fills a thousandth of the field of view.
    step = _SEARCH_MM * subject.size_scale
    grid = np.stack(np.meshgrid(*(np.arange(a, b, step) for a, b in zip(low, high, strict=True))), axis=-1)
    hits = grid[_belongs(grid, subject, organ)]
    if not len(hits):
        raise InputError(
            f"Phantom {subject.seed} shows no {organ or 'body'} in its field of view; choose a different one."
        ).about(value=organ)
    low = np.maximum(low, hits.min(axis=0) - step)
    high = np.minimum(high, hits.max(axis=0) + step)
    found = np.empty((0, 3))
    while len(found) < count:
        points = rng.uniform(low, high, (2 * count + 100, 3))
        found = np.concatenate([found, points[_belongs(points, subject, organ)]])
    return found[:count]


def _belongs(points_mm: np.ndarray, subject: Subject, organ: str | None) -> np.ndarray:
    """Return whether (..., 3) points lie in the organ, or in the body when none is named; (...) bool."""
    labels, body = labels_at(points_mm, subject)
    return body if organ is None else labels == LABELS[organ]


def _draw_field(
    rng: np.random.Generator, deformation: Deformation, name: str, size_scale: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the scanned box: planned on the subject's own anatomy, as a radiographer would, with some slack."""
    full, wanted = _Z_RANGES_MM["torso"], _Z_RANGES_MM[name]
    jitter = rng.uniform(-1, 1, 2)
    heights = [
        wanted[end] + jitter[end] * (_END_JITTER_MM if wanted[end] == full[end] else _CUT_JITTER_MM) for end in (0, 1)
    ]
    axis = [CANONICAL_CENTRE_MM * [0, 1, 1] + [height, 0, 0] for height in heights]
    bottom, top = deformation.from_canonical(np.array(axis))[:, 0]
    # Skin of the widest places, in canonical mm.
    skin = CANONICAL_CENTRE_MM + np.array([[0, -100, 0], [0, 100, 0], [0, 0, -152], [0, 0, 152]])
    skin = deformation.from_canonical(skin)
    margin = rng.uniform(8, 26, 4) * size_scale
    low = np.array([bottom, skin[0, 1] - margin[0], skin[2, 2] - margin[1]])
    high = np.array([top, skin[1, 1] + margin[2], skin[3, 2] + margin[3]])
    return tuple(low.round(3).tolist()), tuple(high.round(3).tolist())


def make_disease(rng: np.random.Generator, kind: str, severity: float | None = None) -> Disease:
    """Draw a disease; lesions of the same generator state keep their places and grow with the severity.

    Args:
        rng: source of randomness.
        kind: one of ``DISEASES``.
        severity: in [0, 1]; drawn from [0.15, 1] when not given.

    Raises:
        InputError: no such disease, or a severity outside [0, 1].
    """
    if kind not in DISEASES:
        raise InputError(f"There is no phantom disease '{kind}'; choose one of {', '.join(DISEASES)}.").about(
            option="disease", value=kind
        )
    drawn = round(float(rng.uniform(0.15, 1.0)), 4)
    severity = drawn if severity is None else float(severity)
    if not 0 <= severity <= 1:
        raise InputError(f"The severity of a phantom's disease must lie in [0, 1], not {severity}.").about(
            option="severity", value=severity
        )
    if kind == "none":
        return Disease()
    if kind != "lesions":
        return Disease(kind, severity)
    organs, centres, sizes = _lesion_sites(rng)
    count = 1 + round(4 * severity)
    lesions = tuple(
        Lesion(organ, centre, round((4.5 + 7.5 * severity) * size, 3), LESION_HU[organ])
        for organ, centre, size in zip(organs[:count], centres[:count], sizes[:count], strict=True)
    )
    return Disease(kind, severity, lesions)


def _lesion_sites(rng: np.random.Generator) -> tuple[list[str], list[tuple[float, ...]], list[float]]:
    """Draw organ, centre and relative size of as many lesions as the severest disease has."""
    organs, centres, sizes = [], [], []
    for _ in range(5):
        organ = str(rng.choice(list(LESION_HU)))
        candidates = _organ_points()[organ]
        organs.append(organ)
        centres.append(tuple(candidates[rng.integers(len(candidates))].round(3).tolist()))
        sizes.append(float(rng.uniform(0.85, 1.15)))
    return organs, centres, sizes


@lru_cache(maxsize=1)
def _organ_points() -> dict[str, np.ndarray]:
    """Return (N, 3) canonical points inside each organ that can carry lesions; the same in every process."""
    points = np.random.default_rng(7).uniform((100, -90, -130), (380, 95, 130), (60_000, 3))
    labels = paint(points.T, Appearance(), Disease())[1]
    bent = organic(points.T).T
    return {organ: bent[labels == LABELS[organ]] for organ in LESION_HU}
