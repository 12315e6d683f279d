"""Hashes of strings."""

from __future__ import annotations

from hashlib import blake2b


def digest(text: str) -> int:
    """A 64-bit hash of a string. Surrogate escapes, as in file names that are not UTF-8, are allowed."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
