"""Experiment planners for pretraining, on top of the planners of nnU-Net."""
