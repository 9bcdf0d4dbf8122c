"""Trainers that `nnUNetv2_train` finds by name once `nnUNet_extTrainer` points to this folder."""
