"""Benchmarks: a matrix of runs and its tables."""
