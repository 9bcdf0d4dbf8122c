"""The papers as torch modules and losses: tensors in, tensors out."""
