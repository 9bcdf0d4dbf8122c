"""Extract features of images with a trained encoder, and probe what they know."""
