"""What pretraining is worth: matching error, features, probes, benchmark and report."""
