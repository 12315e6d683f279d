"""Recipes: what a data set consists of, for each layout of recordings on disk."""
