"""Errors, atomic file writes, hashing, a process pool, progress and optional packages."""
