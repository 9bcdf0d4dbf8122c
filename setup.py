"""Package metadata. Settings of the tools (ruff, pytest, mypy) live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
TEST = ["pytest>=8", "pytest-xdist>=3.6", "pydicom>=2.4", "huggingface_hub>=0.23"]

setup(
    name="nnunet_alice",
    version="0.1.0",
    description="Self-supervised pretraining (Alice, DrasCLR) inside stock nnU-Net v2",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    # `trainers/` and `planners/` lie at the top of the checkout, where users look for them, and are installed
    # inside the package: nnU-Net finds the trainers through `nnUNet_extTrainer=$(nnunet_alice trainers)`.
    packages=[
        *find_packages(include=["nnunet_alice", "nnunet_alice.*"]),
        "nnunet_alice.trainers",
        "nnunet_alice.planners",
    ],
    package_dir={
        "nnunet_alice": "nnunet_alice",
        "nnunet_alice.trainers": "trainers",
        "nnunet_alice.planners": "planners",
    },
    package_data={"nnunet_alice": ["py.typed"]},
    install_requires=[
        "torch>=2.6",  # checkpoints.loading: safe_globals with (callable, name)
        "nnunetv2>=2.8.1,<2.9",
        "batchgenerators>=0.25.1",
        "batchgeneratorsv2>=0.3.2",
        "SimpleITK>=2.2.1",
        "numpy>=1.24",
        # What nnunetv2 brings anyway, named because we import it ourselves.
        "blosc2>=3.3.2",
        "dynamic_network_architectures>=0.4.4",
        "filelock",
        "matplotlib",
        "nibabel",
        "pandas",
        "PyYAML",
        "safetensors>=0.4",
        "scikit-image>=0.22",  # phase_cross_correlation answers alike with and without masks
        "scikit-learn",
        "scipy",
        "threadpoolctl",
        "tqdm",
    ],
    extras_require={
        # Cox model of nnunet_alice probe; GPL-licensed and 16 MB, so only for those who ask for it.
        "survival": ["scikit-survival>=0.25"],
        # nnunet_alice import of DICOM series
        "dicom": ["pydicom>=2.4"],
        # nnunet_alice fetch hf:owner/name
        "hub": ["huggingface_hub>=0.23"],
        "test": TEST,
        "docs": ["mkdocs-material>=9.5"],
        "dev": [*TEST, "ruff>=0.6", "mypy>=1.11"],
    },
    entry_points={"console_scripts": ["nnunet_alice=nnunet_alice.cli.main:main"]},
)
