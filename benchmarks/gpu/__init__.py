"""Measurements for a machine with a GPU, each in its own process, within a given time: `python -m benchmarks.gpu`."""
