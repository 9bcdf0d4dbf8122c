"""Which files are volumes: endings, the data files that some headers point to, and what other files are."""

import os
import re
import stat
from pathlib import Path

#: Volumes in one file, which nnU-Net takes in folders.
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
#: All that import reads; nnU-Net finds these through ``dataset.json``.
ENDINGS_OF_IMPORT = (*ENDINGS, ".hdr", ".nhdr", ".mhd", ".gipl.gz", ".gipl", ".mnc", ".mgz", ".mgh")
#: Formats that keep no orientation.
WITHOUT_ORIENTATION = (".gipl", ".gipl.gz")
#: What DICOM files are where they are not read.
DICOM = "DICOM; pip install 'nnunet_alice[dicom]' and import again, or convert it, for example with dcm2niix"
#: What files of other endings are, and what to do with them.
_OTHERS = {
    DICOM: ".dcm .dicom .ima",
    "keeps no voxel size; convert it to NIfTI or NRRD": ".tif .tiff .lsm .npy .npz .png .jpg .jpeg .bmp",
    "half of an image whose .hdr is missing": ".img .img.gz",
    "voxels whose header (.mhd or .nhdr) is missing": ".raw .zraw",
    "may be an image; convert it to NIfTI": ".vtk .vti .mrc .h5 .hdf5 .mat .v .par .rec .nia",
    "compressed; unpack it": ".zip .tar .tgz .tar.gz .7z .bz2 .nii.zst .nii.xz",
}
#: Longest header of a detached image that is read, bytes; one with its data behind it is longer.
_HEADER_BYTES = 1 << 16


def volume_ending(path: Path, endings: tuple[str, ...] = ENDINGS) -> str | None:
    """Return the ending of a volume file as it is written in its name; None if it is no volume."""
    for ending in endings:
        if path.name.lower().endswith(ending):
            return path.name[-len(ending) :]
    return None


def is_pipe_or_device(path: Path) -> bool:
    """Return whether what is listed as a file is none (a socket neither): reading it may never end."""
    try:
        mode = path.stat().st_mode
    except OSError:  # a link to nowhere, or no permission: whoever reads it will say so
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def data_files(path: Path) -> tuple[Path, ...]:
    """Return the files, existing or not, that hold the voxels of a header file; empty for a volume in one file.

    Raises:
        OSError: the header cannot be read.
    """
    ending = (volume_ending(path, ENDINGS_OF_IMPORT) or "").lower()
    if ending == ".hdr":
        return (_voxels_of_hdr(path, path.name[: -len(ending)]),)
    if ending not in (".mhd", ".nhdr"):
        return ()
    with path.open("rb") as file:
        lines = file.read(_HEADER_BYTES).decode("latin-1").splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"\s*(?:ElementDataFile\s*=|data\s?file:)\s*(.*\S)", line, re.IGNORECASE)
        if match is None:
            continue
        if match[1].upper() == "LOCAL":
            return ()
        if match[1].upper().startswith("LIST"):
            return tuple(path.parent / name.strip() for name in lines[number + 1 :] if name.strip())
        # a pattern, as slice%03d.raw 1 100 1, stands for many files
        return () if "%" in match[1] else (path.parent / match[1],)
    return ()


def _voxels_of_hdr(path: Path, stem: str) -> Path:
    """Return the file behind a .hdr, whose ending may be in any letters; the usual one where there is none."""
    names = [f"{stem}{data}" for data in (".img", ".IMG", ".img.gz")]
    there = [name for name in names if (path.parent / name).is_file()]
    if not there:
        listed = sorted(os.listdir(path.parent))  # noqa: PTH208  names are all that is wanted
        small = {name.lower() for name in names}
        there = [n for n in listed if n.startswith(stem) and stem.lower() + n[len(stem) :].lower() in small]
        there = [name for name in there if (path.parent / name).is_file()]
    return path.parent / (there or names)[0]


def ending_of(path: Path) -> str:
    """Return the ending of any file, small letters; empty if it has none, or one like that of ``1.2.840.113``."""
    name = path.name.lower()
    known = [ending for endings in _OTHERS.values() for ending in endings.split() if name.endswith(ending)]
    if known:
        return max(known, key=len)
    return path.suffix.lower() if re.fullmatch(r"\.[a-z]\w*", path.suffix.lower()) else ""


def what_it_is(path: Path) -> str:
    """Return what a file that is no volume is and how to mend it; empty for one that is not known to be an image.

    Raises:
        OSError: its ending does not tell, and it cannot be read.
    """
    ending = ending_of(path)
    for sentence, endings in _OTHERS.items():
        if ending in endings.split():
            return sentence
    with path.open("rb") as file:
        file.seek(128, os.SEEK_SET)
        return DICOM if file.read(4) == b"DICM" else ""
