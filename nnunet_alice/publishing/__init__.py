"""Pretrained models that travel: written to a folder for others, fetched from there, used like any checkpoint."""
