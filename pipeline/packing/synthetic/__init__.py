"""The synthetic data set: scenes of one object on a table."""
