"""The error class for problems that the user can fix."""

from __future__ import annotations


class UserError(Exception):
    """An error that the user can fix. The message says what is wrong, where, and how to fix it.

    The command line prints the message without a traceback and exits with 2.
    """
