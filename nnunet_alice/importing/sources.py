"""What a folder holds, whatever its layout: volumes in files, a BIDS folder, DICOM series, or several of these."""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

from nnunet_alice.errors import InputError
from nnunet_alice.importing.bids import bids_cases, is_bids
from nnunet_alice.importing.dicom import dicom_cases, holds_dicom
from nnunet_alice.importing.endings import DICOM, ENDINGS_OF_IMPORT
from nnunet_alice.importing.scan import Scan, scan_folder

logger = logging.getLogger(__name__)

_ONE_CHANNEL = "DICOM, which is imported with one --channel at a time"


def scan_source(
    source: Path,
    dataset_folder: Path,
    channels: Sequence[str],
    num_processes: int,
    derived: bool = False,
    whole: bool = True,
) -> Scan:
    """Return the cases of a folder; DICOM series become volumes of the dataset first.

    Args:
        source: the folder.
        dataset_folder: of the dataset in ``nnUNet_raw``.
        channels: names of the channels.
        num_processes: processes that read DICOM.
        derived: take DICOM series that were computed from others, too.
        whole: all cases are wanted, and not a part of them.

    Raises:
        InputError: it is a BIDS folder without such channels; DICOM cannot be read now, or is wanted in parts.
    """
    scan = scan_folder(source, len(channels), ENDINGS_OF_IMPORT, more="name every channel with --channel")
    if is_bids(source):
        scan.cases = bids_cases(source, channels)
        logger.info(
            "%s is a BIDS folder: its anatomical images are taken, one case a subject, session and run.", source
        )
    dicom = [ending for ending, others in scan.others.items() if others.what == DICOM]
    held = holds_dicom(dataset_folder)
    if not (dicom or held):
        return scan
    if importlib.util.find_spec("pydicom") is None:
        if held:
            raise InputError(
                f"{dataset_folder.name} holds DICOM series, which cannot be read here: pip install "
                "'nnunet_alice[dicom]' and import again."
            ).about(path=dataset_folder, command="pip install 'nnunet_alice[dicom]'")
        return scan
    if len(channels) > 1:
        for ending in dicom:
            scan.others[ending].what = _ONE_CHANNEL
        return scan
    if not whole:
        raise InputError(
            f"{source} holds DICOM series, which are named together: import without --part, in many processes (-np)."
        ).about(path=source, option="--part")
    taken = [candidate.name for candidate in scan.cases]
    series = dicom_cases(scan.other_paths, dataset_folder, channels[0], num_processes, taken, derived)
    if series:
        scan.cases = sorted([*scan.cases, *series], key=lambda candidate: candidate.name)
        for ending in dicom:
            del scan.others[ending]
    return scan
