"""Making indices: a trained embedding describes the body of every case of a dataset."""
