"""Where between grid points is a similarity highest? A quadratic surface fitted to the neighbourhood of the best point.

The similarity near its peak is smooth but noisy: every grid point has its own error of the network. All 26 neighbours
in one least-squares fit average some of that out, which three samples an axis cannot. (Two steps of neighbours average
more, but a quadratic is no likeness of a sharp peak over five steps: better with noise, worse without.)
"""

import itertools

import numpy as np

#: neighbours up to so many steps away on each axis ...
RADIUS = 1
#: ... count with a Gaussian weight of this standard deviation, in steps
SIGMA = 0.7
#: the peak lies within so many steps of the best grid point on each axis
REACH = 0.5
#: least curvature (similarity per squared step) that counts as a peak; along flatter directions nothing moves
_FLAT = 1e-4
#: keeps fits defined where few neighbours are there
_RIDGE = 1e-6


def neighbour_offsets(radius: int = RADIUS) -> np.ndarray:
    """(K, 3) grid offsets of all neighbours up to ``radius`` steps away on each axis, the point itself among them."""
    return np.array(list(itertools.product(range(-radius, radius + 1), repeat=3)))


def quadratic_peaks(values: np.ndarray, present: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Peaks of quadratic surfaces fitted by weighted least squares.

    Args:
        values: (Q, K) samples.
        present: bool (Q, K), which samples there are (grid points at the rim of a body lack neighbours).
        offsets: (K, 3) grid steps from the best point at which they were taken.

    Returns:
        (Q, 3) steps from the best point to the peak, within ``REACH``; 0 along directions without a peak.
    """
    at = offsets.astype(float)
    mixed = [at[:, [i]] * at[:, [j]] for i, j in ((0, 1), (0, 2), (1, 2))]
    design = np.concatenate([np.ones((len(at), 1)), at, at**2, *mixed], axis=1)
    weights = np.where(present, np.exp(-0.5 * (at**2).sum(axis=1) / SIGMA**2), 0)
    # Normal equations of all queries at once: products of columns, weighted by what is there.
    products = (design[:, :, None] * design[:, None]).reshape(len(at), -1)
    normal = (weights @ products).reshape(-1, 10, 10) + _RIDGE * np.eye(10)
    target = (weights * np.where(present, values, 0)) @ design
    fitted = np.linalg.solve(normal, target[..., None])[..., 0]
    slope, hessian = fitted[:, 1:4], np.empty((len(fitted), 3, 3))
    for axis in range(3):
        hessian[:, axis, axis] = 2 * fitted[:, 4 + axis]
    for number, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
        hessian[:, i, j] = hessian[:, j, i] = fitted[:, 7 + number]
    curvature, directions = np.linalg.eigh(hessian)
    along = np.einsum("qji,qj->qi", directions, slope)
    peaked = curvature < -_FLAT
    moved = np.divide(-along, curvature, out=np.zeros_like(along), where=peaked)
    return np.clip(np.einsum("qij,qj->qi", directions, moved), -REACH, REACH)
