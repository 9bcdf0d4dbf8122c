"""One process from real labelled sets to Dice: the search for a better pretraining objective, in minutes a trial."""
