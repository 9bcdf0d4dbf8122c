"""Parts of the pretraining trainers: cases, metrics, signs of collapse, optimisation."""
