"""What values an image holds: robust figures, signs of a wrong unit, and images unlike all others.

nnU-Net normalises CT by statistics of the whole dataset, so one image with wrong values spoils it for all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Percentiles that stand for the lowest, the middle and the highest value in the body; nnU-Net clips CT at the outer.
PERCENTILES = (0.5, 50.0, 99.5)
#: Voxels that the figures are computed from, at most about so many.
_SAMPLES = 1_000_000
#: An image is unlike the others where a figure differs from their median by more than so many robust standard
#: deviations, and by more than this share of the median's range. A shift by 1024 is found; lungs in view are none.
_DEVIATIONS, _SHARES = 6.0, (1.0, 0.4, 3.0)
#: Unsigned values that were negative lie in the last so many below 2 to the number of bits; of 12 bits only in CT.
_WRAPPED = {12: 1124, 16: 8192, 32: 8192}
#: Smallest share of wrapped values that counts, and largest share of them that may lie in the gap below.
_WRAPPED_SHARE, _GAP_SHARE = {12: 0.05, 16: 1e-3, 32: 1e-5}, 0.01
#: Values so close to an end of 16 bits with sign are at that end.
_AT_THE_END = 4096.0
#: Air outside of the body, HU.
_AIR_HU = (-1100.0, -900.0)
#: Body of a scan in HU: its median, and the least that its values span.
_BODY_HU, _SPAN_HU = (-400.0, 200.0), 30.0

WRAPPED = (
    "values wrapped around the end of an integer type (negative ones stored as unsigned, or too large ones as signed); "
    "save it from its source in a wider type"
)
NO_HU = (
    "no Hounsfield units, though the channel is CT: air should lie at about -1000 (the offset of -1024 is missing, a "
    "window was cut out, or the background was set to 0)"
)
NARROW = f"no Hounsfield units, though the channel is CT: its values span less than {_SPAN_HU:g} (scaled to 0 to 1?)"
LOOKS_LIKE_HU = "looks like Hounsfield units, but the channel is not called CT, and nnU-Net normalises it otherwise"


@dataclass(frozen=True)
class Intensities:
    """Values of one channel of an image.

    Attributes:
        lowest: of all voxels.
        low: 0.5th percentile in the body.
        median: in the body.
        high: 99.5th percentile in the body.
        highest: of all voxels.
        air: median outside of the body; None where there is nearly nothing outside.
    """

    lowest: float
    low: float
    median: float
    high: float
    highest: float
    air: float | None


def is_ct(channel: str) -> bool:
    """Return whether nnU-Net normalises a channel of this name by statistics of the whole dataset."""
    return channel.casefold() == "ct"


def measure(image: np.ndarray, body: np.ndarray, channel: str) -> tuple[Intensities, list[str]]:
    """Return figures of a channel, and what is suspicious about them.

    Args:
        image: (z, y, x).
        body: (z, y, x) bool, not empty.
        channel: its name.
    """
    step = max(1, int(np.ceil((image.size / _SAMPLES) ** (1 / 3))))
    thin = (slice(step // 2, None, step),) * 3
    values, inside = image[thin].astype(np.float64).ravel(), body[thin].ravel()
    if not inside.any():
        values, inside = image[body].astype(np.float64), np.ones(int(body.sum()), dtype=bool)
    low, median, high = np.percentile(values[inside], PERCENTILES).tolist()
    air = float(np.median(values[~inside])) if np.mean(~inside) > 0.02 else None
    found = Intensities(float(image.min()), low, median, high, float(image.max()), air)
    hints = [WRAPPED] if is_wrapped(values, channel) else _unit_hints(found, channel)
    return found, hints


def is_wrapped(values: np.ndarray, channel: str) -> bool:
    """Return whether values hold a group just below a power of two, and next to nothing between it and the rest."""
    for bits, reach in _WRAPPED.items():
        top = 2.0**bits
        near = values[values >= top - reach]
        if (bits == 12 and not is_ct(channel)) or near.size < max(2, _WRAPPED_SHARE[bits] * values.size):
            continue
        between = np.count_nonzero((values >= 3 / 8 * top) & (values < top - reach))
        # Saturated voxels are all at the last value.
        if values.max() <= top and near.min() < top - 1 and between <= _GAP_SHARE * near.size:
            return True
    return _is_wrapped_signed(values)


def _is_wrapped_signed(values: np.ndarray) -> bool:
    """Return whether values reach both ends of 16 bits with sign, and hardly any negative one lies close to 0."""
    end = 2.0**15
    ends = [np.count_nonzero(group) for group in (values < _AT_THE_END - end, values >= end - _AT_THE_END)]
    if values.min() < -end or values.max() >= end or min(ends) < max(2, _WRAPPED_SHARE[16] / 10 * values.size):
        return False
    negative = np.count_nonzero(values < -_AT_THE_END / 4)
    return bool(np.count_nonzero((values < -_AT_THE_END / 4) & (values > -2 * _AT_THE_END)) <= _GAP_SHARE * negative)


def _unit_hints(found: Intensities, channel: str) -> list[str]:
    if not is_ct(channel):
        has_hu_air = found.air is not None and _AIR_HU[0] <= found.air <= _AIR_HU[1]
        return [LOOKS_LIKE_HU] if has_hu_air and _BODY_HU[0] <= found.median <= _BODY_HU[1] else []
    if found.high - found.low < _SPAN_HU:
        return [NARROW]
    return [NO_HU] if found.air is not None and found.air > _AIR_HU[1] / 2 else []


def outliers(figures: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Return the images that are unlike the others, and how.

    Args:
        figures: image -> low, median and high value in its body, of one channel.

    Returns:
        image -> sentence, in the order of ``figures``; nothing for fewer than three images.
    """
    if len(figures) < 3:
        return {}
    values = np.asarray(list(figures.values()), dtype=float)
    middle = np.median(values, axis=0)
    spread = 1.4826 * np.median(np.abs(values - middle), axis=0)
    limits = np.maximum(_DEVIATIONS * spread, np.asarray(_SHARES) * (middle[2] - middle[0]))
    far = (np.abs(values - middle) > limits).any(axis=1)
    usual = f"{middle[0]:g} to {middle[2]:g} around {middle[1]:g}"
    return {
        name: f"its values in the body ({low:g} to {high:g} around {median:g}) are unlike those of the others ({usual})"
        for (name, (low, median, high)), is_far in zip(figures.items(), far, strict=True)
        if is_far
    }
