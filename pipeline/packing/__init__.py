"""Packing: recipes, writing and checking data sets, and the synthetic data set."""
