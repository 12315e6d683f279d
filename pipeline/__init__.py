"""Data, training, evaluation and the command line."""

from pipeline.host import wait_without_spinning

wait_without_spinning()  # here, because it must come before the first import of torch
