"""Recipes: what a dataset consists of, for each layout of recordings on disk."""
