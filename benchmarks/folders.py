"""nnU-Net's folders for a benchmark."""

import os
import sys
from pathlib import Path

from nnunet_alice.discovery import package_folder


def set_folders(base: Path) -> dict[str, Path]:
    """Make nnU-Net's folders below one, and set them in the environment together with our trainers."""
    folders = {name: base.absolute() / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ["nnUNet_extTrainer"] = str(package_folder("nnunet_alice.trainers"))
    return folders
