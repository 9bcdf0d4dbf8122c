"""What several test files build on: small data, small networks, finished runs. Imported as ``support.NAME``."""
