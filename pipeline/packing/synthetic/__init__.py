"""The synthetic dataset: scenes of one object on a table."""
