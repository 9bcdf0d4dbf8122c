"""What trainers of both kinds share: ranks, work on the CPU, variants by name."""
