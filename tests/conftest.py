"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

# Workers of pytest-xdist share the cores with each other and with the commands that they start. torch reads this when
# it is imported, so nothing above may import it.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

# nnU-Net's default of 8 processes would be spawned, and torch imported in each, for three tiny cases.
os.environ.setdefault("nnUNet_def_n_proc", "1")


def pytest_configure(config):
    """Keep the order of files: pytest-xdist would take those of one long test last, each on one core."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.fixture
def real_figures():
    """A test that asks for this draws its figures."""


@pytest.fixture(autouse=True)
def quick_figures(request, monkeypatch):
    """Figures of other tests are composed but stored empty: drawing one takes longer than a small training."""
    if "pictures" not in request.path.parts and "real_figures" not in request.fixturenames:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **how: Path(path).write_bytes(b""))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real test data (see its README); the test is skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NNUNET_ALICE_TEST_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set NNUNET_ALICE_TEST_DATA to the folder that holds it")
    return folder


@pytest.fixture
def two_threads():
    """torch computes with two threads, as nnUNetv2_train sets it on two cores; afterwards with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
