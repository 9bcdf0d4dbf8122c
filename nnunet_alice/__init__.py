"""Self-supervised pretraining for nnU-Net v2: unlabelled volumes in, stock nnU-Net weights out."""

__version__ = "0.1.0"
