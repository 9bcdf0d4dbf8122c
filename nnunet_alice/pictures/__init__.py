"""Every figure that the package draws, one file a topic."""
