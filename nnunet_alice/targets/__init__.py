"""Classification, regression and survival on nnU-Net's preprocessed cases: what is to be predicted, and from what."""
