"""Preprocessing without this program: `wcord export` copies the file of a student's modality as `preprocess.py`.

Each needs numpy and what its first lines import, and does what the modality does in evaluation; a test compares them.
"""
