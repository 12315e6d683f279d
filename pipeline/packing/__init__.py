"""Packing: recipes, writing and checking datasets, and the synthetic dataset."""
