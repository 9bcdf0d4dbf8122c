"""The canonical torso as a picture: tissue, label and Hounsfield units at any canonical point."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from nnunet_alice.phantoms import anatomy
from nnunet_alice.phantoms.anatomy import FAT, LABELS, WALL, tubes
from nnunet_alice.phantoms.disease import Disease
from nnunet_alice.phantoms.geometry import Ellipsoid, SmoothNoise, Tube
from nnunet_alice.triples import triple

AIR_HU = -1000.0


@dataclass(frozen=True)
class Appearance:
    """How one subject's tissues look.

    Attributes:
        enhancement: strength of the contrast agent (1 is a usual portal venous phase).
        lung_shift_hu: added to the lungs (depth of breath).
        texture_offset: where the subject's own texture is read from the noise field, in cells.
        noise_hu: standard deviation of the scanner's noise.
    """

    enhancement: float = 1.0
    lung_shift_hu: float = 0.0
    texture_offset: tuple[float, ...] = (0.0, 0.0, 0.0)
    noise_hu: float = 12.0


def paint(
    points_mm: np.ndarray, appearance: Appearance, disease: Disease, edge_mm: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Evaluate the body at canonical points, without noise.

    Args:
        points_mm: (3, N) canonical coordinates (z, y, x).
        appearance: the subject's look.
        disease: the subject's lesions or diffuse change.
        edge_mm: width over which tissues blend (partial volume); the spacing of the image, say.

    Returns:
        Hounsfield units (N,) float32, labels (N,) uint8, and the body mask (N,) bool.
    """
    points = np.asarray(points_mm, dtype=np.float32)
    hu = np.full(points.shape[1], AIR_HU, dtype=np.float32)
    labels = np.zeros(points.shape[1], dtype=np.uint8)
    skin = anatomy.skin_distance(*points)
    near = np.flatnonzero(skin < edge_mm)
    canvas = _Canvas(points[:, near], skin[near], appearance, edge_mm)
    _paint_walls(canvas)
    _paint_abdomen(canvas)
    _paint_chest(canvas, disease)
    _paint_bones(canvas)
    _paint_disease(canvas, disease)
    cover = np.clip(0.5 - skin[near] / edge_mm, 0, 1)
    hu[near] += cover * (canvas.hu - AIR_HU)
    labels[near] = np.where(skin[near] < 0, canvas.labels, 0)
    return hu, labels, skin < 0


@lru_cache(maxsize=1)
def _noise() -> SmoothNoise:
    """Return the noise field of the canonical body: the same in every process."""
    return SmoothNoise(np.random.default_rng(99))


class _Canvas:
    """Points that are being painted, one structure over the other."""

    def __init__(self, points_mm: np.ndarray, skin_mm: np.ndarray, appearance: Appearance, edge_mm: float):
        self.points_mm = anatomy.organic(points_mm)
        self.edge_mm, self.enhancement, self.lung_shift_hu = edge_mm, appearance.enhancement, appearance.lung_shift_hu
        self.fat_depth = skin_mm + FAT(self.points_mm[0])
        self.cavity_depth = self.fat_depth + WALL(self.points_mm[0])
        noise = _noise()
        self.fine = noise(points_mm, 5.0)
        self.coarse = 0.7 * noise(points_mm, 16.0) + 0.7 * noise(points_mm, 14.0, appearance.texture_offset)
        self.hu = np.full(points_mm.shape[1], -100.0, dtype=np.float32)
        self.labels = np.zeros(points_mm.shape[1], dtype=np.uint8)

    def within(self, low: ArrayLike, high: ArrayLike) -> np.ndarray:
        """Return flat indices of the points in a box, widened by the blending edge."""
        low, high = np.asarray(low), np.asarray(high)
        inside = np.ones(len(self.hu), dtype=bool)
        for axis in range(3):
            p = self.points_mm[axis]
            inside &= (p > low[axis] - self.edge_mm) & (p < high[axis] + self.edge_mm)
        return np.flatnonzero(inside)

    def at(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return z, y, x of some points."""
        return triple(p[index] for p in self.points_mm)

    def distance(self, shape: Ellipsoid | Tube, index: np.ndarray) -> np.ndarray:
        """Return the signed distances of some points; tubes are searched no further than blending reaches."""
        if isinstance(shape, Tube):
            return shape.distance(*self.at(index), margin_mm=self.edge_mm / 2 + 2)
        return shape.distance(*self.at(index))

    def fill(
        self,
        index: np.ndarray,
        distance: np.ndarray,
        value: float | np.ndarray,
        organ: str | None = None,
        fine: float = 3.0,
        coarse: float = 4.0,
    ) -> None:
        """Blend a structure over what is there.

        Args:
            index: flat indices of the points looked at.
            distance: signed distances (mm) of these points.
            value: HU, one or one per point.
            organ: name of its label; without one the label below stays.
            fine, coarse: amplitude (HU) of the two scales of texture.
        """
        cover = np.clip(0.5 - distance / self.edge_mm, 0, 1)
        touched = cover > 0
        index, cover = index[touched], cover[touched]
        if isinstance(value, np.ndarray) and value.ndim:
            value = value[touched]
        value = value + fine * self.fine[index] + coarse * self.coarse[index]
        self.hu[index] += cover * (value - self.hu[index])
        if organ is not None:
            self.labels[index[cover > 0.5]] = LABELS[organ]

    def fill_shape(
        self,
        shape: Ellipsoid | Tube,
        value: float | np.ndarray,
        organ: str | None = None,
        fine: float = 3.0,
        coarse: float = 4.0,
    ) -> None:
        """Blend an ellipsoid or tube over what is there."""
        index = self.within(*shape.box())
        self.fill(index, self.distance(shape, index), value, organ, fine, coarse)


def _paint_walls(canvas: _Canvas) -> None:
    """Paint fat, muscles of the trunk, and what fills the cavities between the organs."""
    everything = np.arange(len(canvas.hu))
    z, y, x = canvas.points_mm
    canvas.fill(everything, np.full(len(z), -99.0), -103.0, fine=5, coarse=4)
    canvas.fill(everything, canvas.fat_depth, 55.0, fine=9, coarse=8)
    canvas.fill(everything, canvas.cavity_depth, -98.0, fine=9, coarse=5)
    chest = np.maximum(canvas.cavity_depth, anatomy.dome_height(y, x) - z)
    canvas.fill(everything, chest, -20.0, fine=22, coarse=18)
    diaphragm = np.maximum(np.abs(z + 2 - anatomy.dome_height(y, x)) - 2, canvas.cavity_depth)
    canvas.fill(everything, diaphragm, 50.0)
    canvas.fill_shape(tubes()["psoas"], 60.0, fine=6)
    back = canvas.within((-60, 20, -60), (440, 120, 60))
    z, y, x = canvas.at(back)
    paraspinal = (np.hypot((np.abs(x) - 24) / 20, (y - anatomy.SPINE_Y(z) - 36) / 19) - 1) * 19
    canvas.fill(back, np.maximum(paraspinal, canvas.fat_depth[back]), 58.0, fine=11)


def _paint_abdomen(canvas: _Canvas) -> None:
    """Paint the organs below the diaphragm."""
    glow = canvas.enhancement
    t = tubes()
    canvas.fill_shape(t["small_bowel"], 35 + 20 * glow, fine=14, coarse=12)
    canvas.fill_shape(anatomy.PROSTATE, 45 + 20 * glow)
    _paint_colon(canvas)
    for name in ("cava", "iliac", "portal"):
        canvas.fill_shape(t[name], 45 + 85 * glow)
    canvas.fill_shape(t["pancreas"], 35 + 60 * glow, "pancreas", fine=11)
    _paint_stomach(canvas)
    canvas.fill_shape(anatomy.BLADDER, 8.0, "bladder", fine=2, coarse=1)
    for organ, kidney, sinus in (
        ("kidney_right", anatomy.KIDNEY_RIGHT, anatomy.SINUS_RIGHT),
        ("kidney_left", anatomy.KIDNEY_LEFT, anatomy.SINUS_LEFT),
    ):
        index = canvas.within(*kidney.box())
        distance = kidney.distance(*canvas.at(index))
        cortex = 40 + glow * np.where(distance + 2 * canvas.fine[index] > -6.5, 150, 105)
        canvas.fill(index, distance, cortex, organ, fine=5)
        canvas.fill_shape(sinus, -60.0, fine=15)
    index = canvas.within(*anatomy.SPLEEN.box())
    z, y, x = canvas.at(index)
    under = np.maximum(canvas.cavity_depth[index] + 1.5, z + 4 - anatomy.dome_height(y, x))
    canvas.fill(index, np.maximum(anatomy.SPLEEN.distance(z, y, x), under), 50 + 72 * glow, "spleen", fine=5)
    index = canvas.within((110, -95, -135), (250, 85, 70))
    z, y, x = canvas.at(index)
    liver = anatomy.liver_distance(z, y, x, canvas.cavity_depth[index])
    canvas.fill(index, liver, 58 + 48 * glow, "liver", fine=5, coarse=6)
    inner = index[liver < -1]
    for tree, value in (("liver", 50 + 100 * glow), ("hepatic_veins", 50 + 85 * glow)):
        canvas.fill(inner, canvas.distance(t[tree], inner), value)
    canvas.fill_shape(anatomy.GALLBLADDER, 10.0, "gallbladder", fine=2, coarse=2)


def _paint_colon(canvas: _Canvas) -> None:
    """Paint a wall around stool and gas; gas gathers in front, as in a patient who lies on the back."""
    colon = tubes()["colon"]
    index = canvas.within(*colon.box())
    z, y, x = canvas.at(index)
    distance = canvas.distance(colon, index) + 1.5 * np.sin(z / 4 + x / 4)
    canvas.fill(index, distance, 50.0, "colon")
    content = np.where(canvas.coarse[index] - y / 40 > 0.9, -850.0, 25.0 + 45 * canvas.fine[index])
    canvas.fill(index, distance + 3, content, fine=0)


def _paint_stomach(canvas: _Canvas) -> None:
    """Paint fundus, body and antrum: a wall around fluid, with a bubble of gas in front."""
    index = canvas.within((135, -85, -30), (235, 50, 95))
    z, y, x = canvas.at(index)
    distance = np.minimum(anatomy.STOMACH_FUNDUS.distance(z, y, x), canvas.distance(tubes()["antrum"], index))
    distance = np.maximum.reduce([distance, canvas.cavity_depth[index] + 2, z + 5 - anatomy.dome_height(y, x)])
    canvas.fill(index, distance, 45 + 35 * canvas.enhancement, "stomach")
    canvas.fill(index, distance + 4, 22.0 + 8 * canvas.fine[index], fine=0)
    canvas.fill(index, np.maximum(anatomy.STOMACH_GAS.distance(z, y, x), distance + 4), -880.0)


def _paint_chest(canvas: _Canvas, disease: Disease) -> None:
    """Paint heart, great vessels, lungs with their vessels, and airways."""
    glow = canvas.enhancement
    t = tubes()
    canvas.fill_shape(anatomy.HEART, 50 + 65 * glow, "heart", fine=5)
    for chamber in (anatomy.LEFT_VENTRICLE, anatomy.RIGHT_HEART):
        canvas.fill_shape(chamber, 45 + 115 * glow, "heart")
    for name in ("superior_cava", "pulmonary"):
        canvas.fill_shape(t[name], 45 + 105 * glow)
    index = canvas.within((150, -100, -135), (390, 105, 135))
    z, y, x = canvas.at(index)
    lungs = anatomy.lung_distance(z, y, x, canvas.cavity_depth[index])
    # Blood and collapse make the dependent back of the lung denser.
    base = -850 + canvas.lung_shift_hu + 0.55 * y
    if disease.kind == "emphysema":
        # Lost tissue everywhere, most of all in patches that belong to the subject.
        patches = np.clip(canvas.coarse[index] + 0.3, 0, 1)
        base = base - disease.severity * (70 + 50 * patches)
    for organ, side in (("lung_right", x < 0), ("lung_left", x >= 0)):
        canvas.fill(index[side], lungs[side], base[side], organ, fine=18, coarse=14)
        inner = index[side & (lungs < 0)]
        canvas.fill(inner, canvas.distance(t[organ], inner), 25 + 30 * glow)
    canvas.fill_shape(t["aorta"], 45 + 115 * glow, "aorta")
    for name in ("trachea", "bronchi"):
        index = canvas.within(*t[name].box())
        distance = canvas.distance(t[name], index)
        canvas.fill(index, distance - 1.5, 30.0)
        canvas.fill(index, distance, -950.0, fine=0, coarse=0)


def _paint_bones(canvas: _Canvas) -> None:
    """Paint spine, ribs, shoulder girdle and pelvis, each with a dense rim around softer marrow."""
    index = canvas.within((60, -10, -52), (440, 115, 52))
    bone, disc, canal, level = anatomy.spine_parts(*canvas.at(index))
    canvas.fill(index, disc, 85.0, "spine")
    canvas.fill(index, canal, 25.0)
    marrow = 210 + anatomy.VERTEBRA_HU[level] + 260 * np.clip(1 + bone / 3, 0, 1)
    canvas.fill(index, bone, marrow, "spine", fine=22, coarse=12)
    index = canvas.within((140, -110, -145), (420, 110, 145))
    ribs = anatomy.rib_distance(*canvas.at(index), canvas.cavity_depth[index])
    canvas.fill(index, ribs, 260 + 330 * np.clip(1 + ribs / 2, 0, 1), "ribs", fine=20)
    for name in ("clavicle", "scapula"):
        canvas.fill_shape(tubes()[name], 420.0, fine=40)
    index = canvas.within((-70, -85, -145), (125, 110, 145))
    pelvis = anatomy.pelvis_distance(*canvas.at(index))
    canvas.fill(index, pelvis, 190 + 380 * np.clip(1 + pelvis / 3, 0, 1), "pelvis", fine=25, coarse=12)


def _paint_disease(canvas: _Canvas, disease: Disease) -> None:
    """Paint a fatty liver and lesions inside their organs; labels stay those of the organs."""
    if disease.kind == "fatty_liver":
        liver = canvas.labels == LABELS["liver"]
        canvas.hu[liver] -= disease.severity * (75 + 12 * canvas.coarse[liver])
    for lesion in disease.lesions:
        centre = np.array(lesion.centre_mm)
        index = canvas.within(centre - lesion.radius_mm, centre + lesion.radius_mm)
        z, y, x = (p - c for p, c in zip(canvas.at(index), centre, strict=True))
        distance = np.sqrt(z * z + y * y + x * x) - lesion.radius_mm
        distance[canvas.labels[index] != LABELS[lesion.organ]] = canvas.edge_mm
        canvas.fill(index, distance, lesion.value_hu)
