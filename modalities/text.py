"""Text: one of a sample's captions, as token ids."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modalities.base import Caption, Modality
from modalities.encoders import TEXT_ENCODERS, Encoder, build
from modalities.geometry import Geometry
from modalities.tokenizer import tokenizer

LONGEST = 1_000_000
"""Bytes of captions that a sample may have."""
MARKS = 30
"""Combining marks in a row, as in Unicode's stream-safe text: the time to sort them grows with their number squared."""


@dataclass(frozen=True, kw_only=True)
class Text(Modality):
    """Captions, one a line: in training one of them is drawn for each sample and epoch, otherwise the first is taken.

    tokenizer: `bytes` (UTF-8 bytes, nothing to download), or a transformers tokenizer by hub name or local folder, best
    that of the encoder's own model. length: tokens at most, start and end included; what is longer is cut.
    """

    name: ClassVar[str] = "text"
    fields: ClassVar[tuple[str, ...]] = ("text.txt",)
    encoders: ClassVar[Mapping[str, type[Encoder]]] = TEXT_ENCODERS

    tokenizer: str = "bytes"
    length: Annotated[int, Ge(2)] = 128
    field: str | None = None

    def decode(self, data: bytes, meta: Mapping[str, Any]) -> list[str]:
        """The captions that are not empty, at least one, in Unicode's composed form."""
        if len(data) > LONGEST:
            raise ValueError(f"{len(data)} bytes of captions; at most {LONGEST} are accepted")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"text is not UTF-8 (byte {error.start}); convert it before packing") from None
        if (marks := most_marks(text)) > MARKS:
            raise ValueError(f"text has {marks} combining marks in a row; at most {MARKS} are accepted")
        text = unicodedata.normalize("NFC", text)
        captions = [line for line in map(str.strip, text.splitlines()) if line]
        if not captions:
            raise ValueError("text is empty: there is no caption in it")
        if "\0" in text:
            raise ValueError("text holds zero bytes: it is another kind of file")
        return captions

    def augment(self, value: list[str], geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        """int64 `[tokens]`, at most `length` of them."""
        caption = value[0 if rng is None else int(rng.integers(len(value)))]
        return torch.tensor(tokenizer(self.tokenizer).encode(caption, self.length), dtype=torch.int64)

    def collate(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """`ids [B, longest]`, int64, and `mask [B, longest]`, bool: True where there is a token."""
        padding = tokenizer(self.tokenizer).padding
        mask = pad_sequence([torch.ones(len(value), dtype=torch.bool) for value in values], batch_first=True)
        return {"ids": pad_sequence(list(values), batch_first=True, padding_value=padding), "mask": mask}

    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        encoder = build(self.encoders, spec, tokenizer(self.tokenizer).vocabulary)
        if encoder.preprocessing.size < self.length:
            raise ValueError(
                f"encoder {spec['name']} reads at most {encoder.preprocessing.size} tokens, but texts have up to "
                f"{self.length}; set the modality's `length` to {encoder.preprocessing.size}"
            )
        return encoder

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """With the tokenizer's files in `folder/tokenizer`; see `Modality.portable`."""
        if self.tokenizer == "bytes":
            return dict(spec)
        tokenizer(self.tokenizer).save(folder / "tokenizer")
        return {**spec, "tokenizer": "./tokenizer"}

    def picture(self, value: list[str]) -> np.ndarray:
        """The first caption in lines of 18 letters; what the font lacks is a question mark."""
        words = value[0].encode("ascii", "replace").decode().split()
        lines = [""]
        for word in words:
            lines += [word] if lines[-1] and len(lines[-1]) + len(word) >= 18 else []
            lines[-1] = f"{lines[-1]} {word}".strip() if lines[-1] != word else word
        image = np.full((96, 144, 3), 255, np.uint8)
        for row, line in enumerate(lines[:6]):
            cv2.putText(
                image, line[:18], (4, 16 + 15 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (20, 20, 20), 1, cv2.LINE_AA
            )
        return image

    def caption(self, value: list[str]) -> Caption:
        """The first caption."""
        return Caption(value[0])


def most_marks(text: str) -> int:
    """The longest run of combining marks."""
    if text.isascii():
        return 0
    runs = groupby(text, lambda letter: unicodedata.combining(letter) > 0)
    return max((sum(1 for _ in run) for marks, run in runs if marks), default=0)
