"""The run folder: its files, checkpoints, trackers, and the comparison of runs."""
