"""nnU-Net's folders, small preprocessed datasets, and descriptors whose right matches are known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_alice.anatomy.geometry import CaseGeometry
from nnunet_alice.dataset import PreprocessedDataset
from support.plans import configuration, minimal_plans


def write_preprocessed(
    base: Path,
    images: Mapping[str, np.ndarray],
    spacing: Sequence[float],
    segmentations: Mapping[str, np.ndarray] | None = None,
    properties: Mapping[str, dict] | None = None,
    transpose_forward: Sequence[int] = (0, 1, 2),
) -> PreprocessedDataset:
    """Write (C, z, y, x) images as nnU-Net's preprocessing leaves them; ``base`` has to be ``nnUNet_preprocessed``."""
    folder = base / "Dataset900_Small"
    (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True, exist_ok=True)
    labels = {"background": 0, "front": 1, "back": 2}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "CT"}}))
    plans = minimal_plans(folder.name, {"3d_fullres": configuration(spacing)}, transpose_forward)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    for case, image in images.items():
        seg = (segmentations or {}).get(case, np.zeros((1, *image.shape[1:])))
        nnUNetDatasetBlosc2.save_case(
            image.astype(np.float32),
            seg.astype(np.int16),
            (properties or {}).get(case, {}),
            str(folder / "nnUNetPlans_3d_fullres" / case),
            chunks=image.shape,
            blocks=image.shape,
            chunks_seg=(1, *image.shape[1:]),
            blocks_seg=(1, *image.shape[1:]),
        )
    return PreprocessedDataset(folder.name, "nnUNetPlans", "3d_fullres")


def set_folders(patch: pytest.MonkeyPatch, base: Path) -> None:
    """nnU-Net's folders below ``base`` (``raw``, ``preprocessed``, ``results``), and loading in this process."""
    for name in ("raw", "preprocessed", "results"):
        (base / name).mkdir(exist_ok=True)
        patch.setenv(f"nnUNet_{name}", str(base / name))
    patch.setenv("nnUNet_n_proc_DA", "0")


def set_named_folders(patch: pytest.MonkeyPatch, base: Path, made: bool = False) -> None:
    """nnU-Net's folders below ``base``, under the names of their variables; not ``made``, whoever writes makes them."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        patch.setenv(name, str(base / name))
        if made:
            (base / name).mkdir(parents=True)


def geometry_of(
    body: np.ndarray, factors=(1, 1, 1), shape=None, spacing=(1.0, 1.0, 1.0), axial_axis: int = 0
) -> CaseGeometry:
    """Geometry of a body given by its coarse cells."""
    image = np.zeros(body.shape, np.uint8)
    shape = shape or tuple(n * f for n, f in zip(body.shape, factors, strict=True))
    return CaseGeometry("case", shape, spacing, factors, body.shape, image, np.packbits(body), axial_axis)


def replace_image(dataset: PreprocessedDataset, case: str, image: np.ndarray) -> None:
    """Preprocess a case again, so to speak: another image takes the place of its own."""
    for file in dataset.folder.glob(f"{case}[._]*"):
        file.unlink()
    write_preprocessed(dataset.base.parent, {case: image}, dataset.spacing)


def ball(shape: Sequence[int], spacing: Sequence[float], radius_mm: float, seed: int = 0) -> np.ndarray:
    """(1, *shape) image of a bright textured ball in dark air."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    distance = np.sqrt(sum(g**2 for g in np.meshgrid(*axes, indexing="ij")))
    texture = np.random.default_rng(seed).normal(scale=0.05, size=shape)
    return (np.where(distance < radius_mm, 1.0, -2.0) + texture)[None].astype(np.float32)


class FourierField:
    """Unit descriptors that change smoothly with the place, by random Fourier features.

    The cosine of two places d mm apart is about ``exp(-d^2 / (2 length^2))``.
    """

    def __init__(self, dimension: int, length_mm: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.frequencies = rng.normal(size=(3, dimension)) / length_mm
        self.phases = rng.uniform(0, 2 * np.pi, dimension)

    def __call__(self, points_mm: np.ndarray) -> np.ndarray:
        values = np.cos(points_mm @ self.frequencies + self.phases)
        return values / np.linalg.norm(values, axis=1, keepdims=True)
