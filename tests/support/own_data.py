"""A user's dataset of empty files."""

import json
from pathlib import Path


def dataset(folder: Path, cases: int = 9, channels: int = 1, **changes) -> Path:
    """A dataset of empty files in nnU-Net's format; ``changes`` of dataset.json, where None removes a key."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for case in range(cases):
        for channel in range(channels):
            (folder / "imagesTr" / f"case{case}_{channel:04d}.nii.gz").write_text(f"image {case} {channel}")
        (folder / "labelsTr" / f"case{case}.nii.gz").write_text(f"label {case}")
    content = {
        "channel_names": {str(channel): "CT" for channel in range(channels)},
        "labels": {"background": 0, "liver": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        **changes,
    }
    (folder / "dataset.json").write_text(
        json.dumps({key: value for key, value in content.items() if value is not None})
    )
    return folder
