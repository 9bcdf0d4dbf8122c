"""Shapes of the canonical torso: where its organs lie, in mm (z up, y to the back, x to the left of the patient).

z = 0 is the pubic symphysis and z = 385 the thoracic inlet: a short torso, so that demo volumes stay small
(``size_scale=1.5`` makes an adult). Functions take flat arrays and return signed distances, negative inside.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from nnunet_alice.phantoms.geometry import Ellipsoid, Profile, Tube, grow_tree

LABELS: dict[str, int] = {
    "background": 0,
    "lung_right": 1,
    "lung_left": 2,
    "heart": 3,
    "aorta": 4,
    "liver": 5,
    "gallbladder": 6,
    "spleen": 7,
    "pancreas": 8,
    "stomach": 9,
    "kidney_right": 10,
    "kidney_left": 11,
    "spine": 12,
    "ribs": 13,
    "pelvis": 14,
    "colon": 15,
    "bladder": 16,
}

# Outline: half width, half depth and its centre along y; thickness of fat and of the wall of muscle.
HALF_WIDTH = Profile([-60, 0, 60, 110, 160, 220, 280, 330, 362, 385, 410, 440],
                     [140, 152, 152, 138, 134, 140, 146, 150, 152, 128, 80, 56])  # fmt: skip
HALF_DEPTH = Profile([-60, 0, 60, 110, 160, 220, 280, 330, 365, 385, 410, 440],
                     [80, 92, 96, 90, 92, 98, 102, 96, 80, 70, 60, 56])  # fmt: skip
MIDDLE_Y = Profile([-60, 0, 110, 330, 370, 440], [4, 2, 0, 4, 12, 20])
FAT = Profile([-60, 20, 100, 170, 230, 330, 440], [16, 15, 15, 11, 7, 6, 5])
WALL = Profile([-60, 20, 80, 120, 180, 220, 330, 365, 440], [34, 32, 18, 10, 10, 14, 15, 20, 30])
SPINE_Y = Profile([-60, 10, 50, 85, 124, 166, 220, 280, 340, 380, 440], [50, 60, 60, 44, 36, 42, 54, 58, 50, 40, 34])

# Vertebrae from L5 up: borders between levels, and each level's own proportions (fixed: they name the level).
VERTEBRA_BORDERS = np.concatenate([[68], 68 + np.cumsum([23, 22.5, 22, 21.5, 21] + [18.5] * 4 + [17] * 8 + [14] * 4)])
_levels = np.random.default_rng(12)
VERTEBRA_WIDTH = np.interp(np.arange(21), [0, 5, 16, 20], [23, 20, 14, 12]) * _levels.uniform(0.93, 1.07, 21)
VERTEBRA_SPINOUS = np.interp(np.arange(21), [0, 5, 16, 20], [24, 26, 22, 18]) * _levels.uniform(0.75, 1.2, 21)
VERTEBRA_TRANSVERSE = np.interp(np.arange(21), [0, 3, 6, 20], [38, 42, 28, 24]) * _levels.uniform(0.85, 1.15, 21)
VERTEBRA_HU = _levels.uniform(-50, 60, 21)

HEART = Ellipsoid((254, -26, 18), (37, 36, 46), tilt_coronal=-25)
LEFT_VENTRICLE = Ellipsoid((246, -22, 32), (18, 18, 25), tilt_coronal=-25)
RIGHT_HEART = Ellipsoid((258, -34, -4), (26, 17, 18), tilt_coronal=-15)
SPLEEN = Ellipsoid((190, 42, 88), (40, 36, 20), tilt_coronal=12, tilt_sagittal=12)
KIDNEY_RIGHT = Ellipsoid((144, 42, -56), (33, 17, 18), tilt_coronal=14, tilt_sagittal=8)
KIDNEY_LEFT = Ellipsoid((157, 42, 55), (34, 17, 18), tilt_coronal=-14, tilt_sagittal=8)
SINUS_RIGHT = Ellipsoid((144, 39, -46), (15, 6, 9), tilt_coronal=14)
SINUS_LEFT = Ellipsoid((157, 39, 45), (15, 6, 9), tilt_coronal=-14)
GALLBLADDER = Ellipsoid((160, -48, -48), (19, 12, 12), tilt_coronal=20, tilt_sagittal=25)
STOMACH_FUNDUS = Ellipsoid((203, 6, 58), (24, 28, 27), tilt_coronal=20)
STOMACH_GAS = Ellipsoid((198, -34, 52), (20, 12, 22))
BLADDER = Ellipsoid((32, -30, 0), (21, 23, 29))
PROSTATE = Ellipsoid((8, -8, 0), (14, 16, 19))
SMALL_BOWEL = Ellipsoid((103, -34, 0), (48, 38, 78))
LIVER_RIGHT = Ellipsoid((184, -2, -66), (58, 70, 58), tilt_coronal=6)
LIVER_LEFT = Ellipsoid((206, -42, -8), (24, 34, 56), tilt_coronal=14)
FEMUR_RIGHT = Ellipsoid((6, 6, -80), (20, 20, 20))
FEMUR_LEFT = Ellipsoid((6, 6, 80), (20, 20, 20))
ILIAC = Ellipsoid((62, 8, 0), (78, 66, 112))
SACRUM = Ellipsoid((46, 66, 0), (30, 13, 34), tilt_sagittal=-30)


def organic(points_mm: np.ndarray) -> np.ndarray:
    """Bend (3, N) coordinates by a few mm, so that no organ is a perfect ellipsoid (part of the canonical body)."""
    z, y, x = points_mm
    bent = points_mm.copy()
    bent[0] += 2.2 * np.sin(x / 17 + y / 29 + 0.4)
    bent[1] += 2.0 * np.sin(z / 16 + x / 27 + 1.1)
    bent[2] += 2.0 * np.sin(y / 15 + z / 23 + 2.3)
    return bent


def skin_distance(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the distance to the skin along the ray from the body's axis."""
    y = y - MIDDLE_Y(z)
    a, b = np.abs(x) / HALF_WIDTH(z), np.abs(y) / HALF_DEPTH(z)
    level = (a * a * np.sqrt(a) + b * b * np.sqrt(b)) ** np.float32(0.4)
    return np.sqrt(x * x + y * y) * (1 - 1 / np.maximum(level, 1e-3))


def dome_height(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return height of the diaphragm: the right dome stands higher, both fall off towards the back and the sides."""
    back = 0.0035 * np.maximum(y, 0) ** 2
    right = 238 - 0.0060 * ((x + 60) ** 2 + (y + 8) ** 2)
    left = 228 - 0.0065 * ((x - 62) ** 2 + (y + 8) ** 2)
    return np.maximum(right, left) - back


def lung_distance(z: np.ndarray, y: np.ndarray, x: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return the distance to both lungs: the cavity above the diaphragm without the mediastinum.

    Args:
        z, y, x: canonical coordinates.
        depth: distance to the inner face of the chest wall, negative inside the cavity.
    """
    side = np.where(x < 0, -1, 1)
    outward = x * side
    along = (outward - 56) / 52
    apex = np.sqrt(((z - 205) / 178) ** 2 + 0.5 * along**2 + 0.35 * ((y - 8) / 80) ** 2)
    # The mediastinum is wide in front of the heart, narrow behind the sternum above it.
    middle = 12 + 12 * np.exp(-(((z - 300) / 35) ** 2)) + 14 * np.clip((y - 10) / 40, 0, 1)
    return np.maximum.reduce(
        [depth + 1.5, dome_height(y, x) - z, (apex - 1) * 120, middle - outward, 4 - HEART.distance(z, y, x)]
    )


def liver_distance(z: np.ndarray, y: np.ndarray, x: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return the distance to two lobes under the diaphragm, with the oblique lower border of a liver."""
    lobes = np.minimum(LIVER_RIGHT.distance(z, y, x), LIVER_LEFT.distance(z, y, x))
    lower = (140 + 0.40 * (x + 80) + 0.18 * (y + 20) - z) * 0.9
    column = 40 - np.hypot(x, y - SPINE_Y(z) - 12)
    around = [column, 5 - KIDNEY_RIGHT.distance(z, y, x)]
    return np.maximum.reduce([lobes, depth + 2, z + 4 - dome_height(y, x), lower, *around])


def spine_parts(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return distances of bone, disc and canal, and the number of the vertebra (0 is L5) at each point."""
    level = np.clip(np.searchsorted(VERTEBRA_BORDERS, z, side="right") - 1, 0, len(VERTEBRA_BORDERS) - 2)
    bottom, top = VERTEBRA_BORDERS[level], VERTEBRA_BORDERS[level + 1]
    height = np.abs(z - (bottom + top) / 2)
    half = (top - bottom) / 2
    width = VERTEBRA_WIDTH[level]
    depth = 0.72 * width
    middle = SPINE_Y(z)
    waist = 1 - 0.12 * np.cos(np.pi / 2 * height / half)
    column = (np.sqrt((x / (width * waist)) ** 2 + ((y - middle) / (depth * waist)) ** 2) - 1) * depth
    ends = np.maximum(VERTEBRA_BORDERS[0] - z, z - VERTEBRA_BORDERS[-1])
    body = np.maximum(column, height - half + 2.2)
    disc = np.maximum.reduce([column + 1, half - 2.2 - height, ends])
    canal_y = middle + depth + 7
    canal = np.maximum(np.hypot(x, y - canal_y) - 7, ends)
    arch = np.maximum(np.abs(np.hypot(x, y - canal_y) - 9.5) - 2.5, height - 0.7 * half)
    behind = y - canal_y - 9
    drop = np.abs(z - (bottom + top) / 2 + 0.35 * behind)
    spinous = np.maximum.reduce([np.abs(x) - 2.8, drop - 6, -behind - 2, behind - VERTEBRA_SPINOUS[level]])
    transverse = np.maximum.reduce([np.abs(x) - VERTEBRA_TRANSVERSE[level], np.abs(y - canal_y + 2) - 4, height - 4])
    bone = np.maximum(np.minimum.reduce([body, arch, spinous, transverse]), ends)
    return np.maximum(bone, -canal), disc, canal, level


def rib_distance(z: np.ndarray, y: np.ndarray, x: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return the distance to ribs that slope down towards the front, and to the sternum that closes them.

    Args:
        z, y, x: canonical coordinates.
        depth: distance to the inner face of the chest wall, negative inside the cavity.
    """
    shell = np.abs(depth - 5.5) - 3.2
    height = z - 0.45 * y
    band = np.abs(np.mod(height - 190, 17.5) - 8.75) - 3.6
    arch = 232 - 0.75 * np.abs(x) - z  # costal margin: cartilage and belly in front
    front = np.minimum(-y - 15, arch)
    ribs = np.maximum.reduce([shell, band, 188 - height, height - 365, 24 - np.abs(x), front])
    sternum = np.maximum.reduce([np.abs(depth - 6) - 4.5, np.abs(x) - 13, y, 240 - z, z - 348])
    return np.minimum(ribs, sternum)


def pelvis_distance(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the distance to iliac wings, sacrum, pubic arch and upper femora."""
    wing = np.maximum.reduce([np.abs(ILIAC.distance(z, y, x)) - 4.5, 22 - z, z - 118, 30 - np.abs(x), -y - 30])
    femora = np.minimum(FEMUR_RIGHT.distance(z, y, x), FEMUR_LEFT.distance(z, y, x))
    return np.minimum.reduce([wing, femora, SACRUM.distance(z, y, x), tubes()["pelvis"].distance(z, y, x)])


def _mirrored(knots: ArrayLike, radii: ArrayLike) -> Tube:
    """Return a tube and its mirror image on the other side."""
    return Tube.joined([Tube.through(np.array(knots) * [1, 1, sign], radii) for sign in (-1, 1)])


@lru_cache(maxsize=1)
def tubes() -> dict[str, Tube]:
    """Return all that is long and round, and the vessel trees of lungs and liver; made once a process."""
    rng = np.random.default_rng(2024)
    heights = np.arange(290, 100, -15.0)
    descending = np.stack([heights, SPINE_Y(heights) - np.interp(heights, [100, 300], [25, 22]), 0 * heights + 9], 1)
    arch = [(268, -22, 4), (292, -22, -10), (312, -16, -12), (327, 0, 0), (324, 20, 12), (308, 33, 14)]
    bowel = np.linspace(0, 1, 60)[:, None] * np.array([[2.0, 7.0, 11.0]]) * 2 * np.pi + np.array([[0.3, 1.2, 0.1]])
    bowel = np.sin(bowel) * [40, 30, 68] + SMALL_BOWEL.centre_mm + rng.normal(0, 3, (60, 3))
    colon = [(62, 0, -84), (95, 2, -98), (128, -4, -94), (140, -34, -78), (128, -62, -35), (126, -66, 10),
             (140, -54, 58), (176, -16, 92), (160, 8, 104), (120, 12, 101), (80, 8, 92), (56, 4, 62), (60, 14, 28),
             (52, 34, 6), (30, 40, 0), (4, 44, 0)]  # fmt: skip
    return {
        "aorta": Tube.through([*arch, *descending], np.interp(np.arange(19), [0, 5, 18], [12, 10, 8])),
        "iliac": _mirrored(
            [(104, 14, 9), (80, 20, 26), (45, 8, 50), (5, -46, 64), (-40, -55, 70)], [5.5, 5, 5, 4.5, 4]
        ),
        "cava": Tube.through([(95, 18, -16), (140, 12, -18), (190, 10, -20), (225, -4, -18), (245, -18, -12)], 9.5),
        "superior_cava": Tube.through([(268, -22, -18), (300, -14, -24), (345, -6, -24), (378, 4, -34)], 8),
        "pulmonary": Tube.joined(
            [
                Tube.through([(280, -34, 14), (300, -16, 16), (304, -2, 22), (298, 8, 40)], [11, 11, 9, 7]),
                Tube.through([(300, -12, 16), (303, 0, -6), (298, 6, -40)], [9, 8, 7]),
            ]
        ),
        "trachea": Tube.through([(440, 22, 0), (380, 16, 0), (322, 22, -2)], [8, 7.5, 7.5]),
        "bronchi": Tube.joined(
            [
                Tube.through([(324, 22, -2), (306, 20, -22), (292, 18, -42)], [6.5, 6, 5]),
                Tube.through([(324, 22, -2), (306, 20, 20), (294, 18, 44)], [6.5, 6, 5]),
            ]
        ),
        "pancreas": Tube.through(
            [(142, -12, -30), (156, -16, -24), (166, -24, -2), (170, -18, 26), (180, 12, 62)], [10, 11, 9, 9, 7]
        ),
        "antrum": Tube.through(
            [(204, -2, 58), (180, -30, 52), (166, -46, 34), (162, -48, 6), (162, -40, -16)], [22, 24, 21, 16, 10]
        ),
        "portal": Tube.through([(140, -14, 4), (158, -14, -8), (176, -14, -32)], [6, 6.5, 6]),
        "psoas": _mirrored(
            [(166, 38, 27), (120, 38, 34), (80, 30, 46), (30, -12, 62), (0, -20, 74)], [8, 13, 15, 13, 9]
        ),
        "pelvis": Tube.joined(
            [
                _mirrored([(8, -62, 2), (14, -58, 30), (22, -30, 62), (30, 0, 82)], [9, 7, 8, 14]),
                _mirrored([(30, 0, 82), (0, 24, 66), (-26, 20, 52), (-20, -20, 40), (4, -58, 14)], [14, 10, 10, 7, 7]),
                _mirrored([(6, 6, 80), (-4, 8, 98), (-22, 8, 112), (-70, 6, 116)], [13, 13, 15, 14]),
            ]
        ),
        "clavicle": _mirrored([(350, -62, 14), (362, -56, 60), (372, -20, 108)], 6),
        "scapula": _mirrored([(290, 66, 72), (320, 70, 82), (350, 60, 98), (366, 36, 118)], [5, 6, 7, 9]),
        "small_bowel": Tube.through(bowel, 9),
        "colon": Tube.through(colon, np.linspace(17, 13, 16) * rng.uniform(0.9, 1.1, 16)),
        "lung_right": grow_tree(np.array([298.0, 8, -36]), _targets(rng, 200, -1), 1.4, 5.5),
        "lung_left": grow_tree(np.array([298.0, 8, 36]), _targets(rng, 170, 1), 1.4, 5.5),
        "liver": grow_tree(np.array([176.0, -14, -32]), _targets(rng, 50, 0), 1.5, 5.5),
        "hepatic_veins": grow_tree(np.array([222.0, -2, -20]), _targets(rng, 12, 0), 2.0, 5.0),
    }


def _targets(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    """Draw (count, 3) points inside the right (-1) or left (1) lung, or the liver (0)."""
    low, high = ((130, -80, -130), (240, 80, 50)) if side == 0 else ((170, -90, -125), (380, 90, 125))
    points = rng.uniform(low, high, (40 * count, 3))
    z, y, x = points.T
    depth = skin_distance(z, y, x) + FAT(z) + WALL(z)
    distance = liver_distance(z, y, x, depth) if side == 0 else lung_distance(z, y, x, depth)
    inside = (distance < -5) & (x * side >= 0)
    return points[inside][:count]
