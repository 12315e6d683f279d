"""Preprocessing of text. Requires numpy and, unless the tokenizer is `bytes`, the package tokenizers."""

import json
import unicodedata
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ABOUT = json.loads((HERE / "preprocessing.json").read_text())
LENGTH, PADDING = ABOUT["settings"]["length"], ABOUT["settings"]["padding"]
START, END, FIRST_BYTE = 1, 2, 3


def read(data: bytes) -> dict[str, np.ndarray]:
    """Tokenize the first non-empty line of a UTF-8 text.

    Args:
        data: The bytes of the text.

    Returns:
        `ids`, int64 [N], and `mask`, bool [N].
    """
    lines = unicodedata.normalize("NFC", data.decode("utf-8-sig")).splitlines()
    ids = encode(next(line.strip() for line in lines if line.strip()))
    return {"ids": np.array(ids, np.int64), "mask": np.ones(len(ids), bool)}


def batch(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Combine results of `read` into one padded input of the network."""
    longest = max(len(sample["ids"]) for sample in samples)
    fill = {"ids": PADDING, "mask": False}
    return {
        name: np.stack([np.pad(s[name], (0, longest - len(s[name])), constant_values=fill[name]) for s in samples])
        for name in fill
    }


def encode(text: str) -> list[int]:
    """Tokenize a text to at most LENGTH ids."""
    if ABOUT["settings"]["tokenizer"] == "bytes":
        return [START, *(FIRST_BYTE + byte for byte in text.encode()[: LENGTH - 2]), END]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    return tokenizer.encode(text).ids
