"""The one error that users see: what was wrong, where, and what to do."""

from __future__ import annotations


class UserError(Exception):
    """A fault in what the program was given. The CLI prints the message without a traceback and exits with 2."""
