"""DICOM series on disk, as a scanner's export would have them; whatever is wrong is asked for by name."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

SHAPE = (8, 20, 24)


def volume(seed: int = 0, shape=SHAPE) -> np.ndarray:
    """A bright block in air, stored values (z, y, x): HU plus 1024."""
    rng = np.random.default_rng(seed)
    array = rng.normal(24, 5, shape)
    block = array[1:-1, 3:-5, 4:-6]
    block[:] = rng.normal(1064, 20, block.shape)
    return array.clip(0).astype(np.int16)


def write_series(folder: Path, stored: np.ndarray | None = None, shuffle: bool = True, **changes) -> list[Path]:
    """Write a CT series with voxels of 1.5 x 1.5 x 2.5 mm (x, y, z), feet first; returns its files by position.

    ``changes`` are entries for all slices, or functions of the slice's number that give one; ``position`` is a function
    that gives ImagePositionPatient, ``syntax`` the transfer syntax.
    """
    stored = volume() if stored is None else stored
    series, study = generate_uid(), generate_uid()
    names = np.random.default_rng(1).permutation(len(stored)) if shuffle else np.arange(len(stored))
    folder.mkdir(parents=True, exist_ok=True)
    position = changes.pop("position", lambda z: [-10.0, -20.0, 30 + 2.5 * z])
    syntax = changes.pop("syntax", ExplicitVRLittleEndian)
    files = []
    for z, pixels in enumerate(stored):
        dataset = Dataset()
        dataset.SOPClassUID = MRImageStorage if changes.get("Modality") == "MR" else CTImageStorage
        dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = generate_uid(), series, study
        dataset.PatientID, dataset.PatientName, dataset.StudyDate = "4711", "Smith^John", "20260102"
        dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.SeriesDescription, dataset.SeriesNumber, dataset.AcquisitionNumber = "Chest 2.5", 3, 1
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelSpacing, dataset.ImageOrientationPatient = [1.5, 1.5], [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = position(z)
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 1, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = pixels.astype("<i2").tobytes()
        for name, value in changes.items():
            value = value(z) if callable(value) else value
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax.is_compressed:
            from pydicom.encaps import encapsulate

            dataset.PixelData = encapsulate([dataset.PixelData])
            dataset["PixelData"].is_undefined_length = True
        files.append(folder / f"IM{names[z]:04d}")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files
