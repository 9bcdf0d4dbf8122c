"""Features of 90 cases that hold a linear signal, and the table that asks for it."""

from pathlib import Path

import numpy as np
import pandas as pd


def names(count):
    return np.array([f"case{number:03d}" for number in range(count)])


def linear():
    """Forty features of very different scales of 90 cases, and a number that depends on two of them."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(90, 40)) * rng.uniform(0.01, 100, 40) + 5
    signal = features[:, 0] / features[:, 0].std() + features[:, 1] / features[:, 1].std()
    return features, signal - signal.mean()


def write_probed(folder: Path) -> Path:
    """Write ``f.npz`` with the features and ``t.csv`` with what is probed, its rows in a different order."""
    features, signal = linear()
    np.savez(folder / "f.npz", level="case", cases=names(90), features=features.astype(np.float32))
    table = pd.DataFrame({"id": names(90)[::-1], "severity": signal[::-1], "ill": (signal > 0)[::-1].astype(int)})
    table["same"], table["words"] = 1, "x"
    table.to_csv(folder / "t.csv", index=False)
    return folder
