"""Standalone preprocessing: `wcord export` copies the file for the student's modality as `preprocess.py`.

A modality from another package provides its own file: `Modality.preprocess_script`.

Each file needs only numpy and the packages that it imports at the top. It does the same as the modality in evaluation,
which a test verifies.
"""
