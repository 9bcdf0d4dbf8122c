"""What pretraining trainers share and nnU-Net need not know: records, variants, collapse watch."""
