"""Recipes: each finds the samples of a dataset in one kind of layout on disk."""
