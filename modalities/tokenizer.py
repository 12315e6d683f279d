"""Tokenizers by name: the embedded one over bytes, or one of the transformers library."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from modalities.transformers_loader import import_transformers

PADDING, START, END, FIRST_BYTE = 0, 1, 2, 3


class Tokenizer(Protocol):
    """padding: the id that fills up a batch. vocabulary: how many ids there are."""

    padding: int
    vocabulary: int

    def encode(self, text: str, length: int) -> list[int]:
        """Ids of a text, at most `length`, with the marks that its models expect."""

    def save(self, folder: Path) -> None:
        """Write what it needs to be loaded again from that folder."""


@lru_cache(maxsize=8)
def tokenizer(name: str) -> Tokenizer:
    """`bytes`, or a transformers tokenizer by hub name or local folder; each process loads it once.

    Raises ValueError for one that cannot be found.
    """
    return Bytes() if name == "bytes" else Pretrained(name)


class Bytes:
    """UTF-8 bytes between a start and an end mark: nothing to download, and no word that it does not know."""

    padding = PADDING
    vocabulary = FIRST_BYTE + 256

    def encode(self, text: str, length: int) -> list[int]:
        """At most `length` ids: the start mark, a byte each, the end mark."""
        return [START, *(FIRST_BYTE + byte for byte in text.encode()[: length - 2]), END]

    def save(self, folder: Path) -> None:
        """It is in the program itself."""


class Pretrained:
    """A tokenizer of the transformers library; its own code only, never code from the hub."""

    def __init__(self, name: str) -> None:
        try:
            self.own: Any = import_transformers().AutoTokenizer.from_pretrained(
                name, local_files_only=Path(name).exists(), trust_remote_code=False
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"tokenizer: cannot read {name!r}; give `bytes`, a hub name, or the folder of a tokenizer's "
                f"save_pretrained. ({str(error).splitlines()[0][:200]})"
            ) from error
        own = self.own
        self.padding = next((i for i in (own.pad_token_id, own.eos_token_id) if i is not None), 0)
        self.vocabulary = len(own)

    def encode(self, text: str, length: int) -> list[int]:
        """At most `length` ids, with the special ones of its model."""
        ids: list[int] = self.own(text, truncation=True, max_length=length)["input_ids"]
        return ids

    def save(self, folder: Path) -> None:
        """Write it with `save_pretrained`."""
        self.own.save_pretrained(folder)
