"""Tokenizers by name: the built-in byte tokenizer, those of the transformers library, and those of open_clip."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from modalities.encoders.library import closest, quiet, require
from modalities.transformers_loader import import_transformers

PADDING, START, END, FIRST_BYTE = 0, 1, 2, 3


class Tokenizer(Protocol):
    """Interface of a tokenizer. `padding` is the id that pads a batch; `vocabulary` is the number of ids."""

    padding: int
    vocabulary: int

    def encode(self, text: str, length: int) -> list[int]:
        """Tokenize a text to at most `length` ids, including the special tokens of the model."""

    def save(self, folder: Path) -> None:
        """Write the files that are needed to load the tokenizer from this folder."""


@lru_cache(maxsize=8)
def tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer, once per process.

    Args:
        name: `bytes`, `open_clip:MODEL`, or a transformers tokenizer by Hub name or local folder.

    Raises:
        ValueError: The tokenizer cannot be read.
    """
    if name.startswith("open_clip:"):
        return OpenCLIP(name.removeprefix("open_clip:"))
    return Bytes() if name == "bytes" else Pretrained(name)


class Bytes:
    """UTF-8 bytes between a start and an end token: no download, no unknown words."""

    padding = PADDING
    vocabulary = FIRST_BYTE + 256

    def encode(self, text: str, length: int) -> list[int]:
        """Tokenize to at most `length` ids: start, one id per byte, end."""
        return [START, *(FIRST_BYTE + byte for byte in text.encode()[: length - 2]), END]

    def save(self, folder: Path) -> None:
        """Do nothing, since it needs no files."""


class Pretrained:
    """A tokenizer of the transformers library. Code from the Hub is never run.

    Args:
        name: Hub name or local folder.

    Raises:
        ValueError: The tokenizer cannot be read.
    """

    def __init__(self, name: str) -> None:
        try:
            self.own: Any = import_transformers().AutoTokenizer.from_pretrained(
                name, local_files_only=Path(name).exists(), trust_remote_code=False
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"tokenizer: cannot read {name!r}; use `bytes`, a Hub name, or a folder written by save_pretrained. "
                f"({str(error).splitlines()[0][:200]})"
            ) from error
        own = self.own
        self.padding = next((i for i in (own.pad_token_id, own.eos_token_id) if i is not None), 0)
        self.vocabulary = len(own)

    def encode(self, text: str, length: int) -> list[int]:
        """Tokenize to at most `length` ids, including the special tokens of the model."""
        ids: list[int] = self.own(text, truncation=True, max_length=length)["input_ids"]
        return ids

    def save(self, folder: Path) -> None:
        """Write the tokenizer with `save_pretrained`."""
        self.own.save_pretrained(folder)


class OpenCLIP:
    """The BPE tokenizer of an open_clip model, whose vocabulary comes with the library.

    Args:
        model: Name of the model.

    Raises:
        ValueError: open_clip is not installed, has no such model, or the model has another tokenizer.
    """

    padding = 0

    def __init__(self, model: str) -> None:
        library = require("open_clip", "open_clip")
        if model not in library.list_models():
            raise ValueError(f"tokenizer: open_clip has no model {model!r}{closest(model, library.list_models())}")
        with quiet("open_clip"):
            self.own: Any = library.get_tokenizer(model)
        if not hasattr(self.own, "sot_token_id"):
            raise ValueError(
                f"tokenizer: the tokenizer of {model} is a transformers tokenizer; set its Hub name instead"
            )
        self.vocabulary: int = self.own.vocab_size

    def encode(self, text: str, length: int) -> list[int]:
        """Tokenize to at most `length` ids, as open_clip does, without its padding."""
        ids: list[int] = self.own(text, context_length=length)[0].tolist()
        return ids[: ids.index(self.own.eot_token_id) + 1]

    def save(self, folder: Path) -> None:
        """Do nothing, since the vocabulary comes with the library."""
