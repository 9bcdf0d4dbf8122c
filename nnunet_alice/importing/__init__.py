"""Bring volumes into nnU-Net's raw folder: unlabelled scans and public datasets, each volume checked."""
