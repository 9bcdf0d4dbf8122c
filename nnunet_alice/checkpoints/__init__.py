"""Checkpoints: saved whole or not at all, loaded safely, described, adapted."""
