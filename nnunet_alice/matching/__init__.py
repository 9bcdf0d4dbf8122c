"""Find the same point in other cases: matchers, their indices and calibration, landmarks, and their errors."""
