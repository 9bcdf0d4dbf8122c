"""Where volumes come from: unlabelled folders, phantoms, public datasets."""
