"""Small raw volumes as files, and the import of a folder of them."""

import numpy as np
import SimpleITK as sitk

from nnunet_alice.importing.unlabelled import import_unlabelled

SHAPE = (20, 24, 28)


def volume(seed=0, shape=SHAPE, dtype=np.int16):
    """A bright block in air, at a place that tells every orientation apart: (z, y, x)."""
    rng = np.random.default_rng(seed)
    array = rng.normal(-1000, 10, shape)
    block = array[2:-5, 3:-8, 4:-10]
    block[:] = rng.normal(40, 20, block.shape)
    return array.astype(dtype)


def write(path, array=None, spacing=(1.5, 1.5, 2.0), turn=None, **kwargs):
    image = sitk.GetImageFromArray(volume() if array is None else array, **kwargs)
    if image.GetDimension() == 3:
        image.SetSpacing(spacing)
        image.SetOrigin((10, -20, 30))
    if turn:
        image = sitk.DICOMOrient(image, turn)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)


def cut(path, keep=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def run(scans, channels=("CT",), processes=1, **kwargs):
    return import_unlabelled(scans, 900, name="Test", channels=channels, num_processes=processes, **kwargs)
