"""Describe the body in each case: its mask, geometry and world, and its registration to an atlas."""
