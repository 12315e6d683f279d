"""Text: one caption per sample, as token ids."""

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
"""Maximum total size of a sample's captions in bytes."""
MARKS = 30
"""Maximum number of consecutive combining marks, as in Unicode's stream-safe text: sorting them takes quadratic time.
"""


@dataclass(frozen=True, kw_only=True)
class Text(Modality):
    """Captions, one per line. Training draws one per sample and epoch; evaluation uses the first one.

    Args:
        tokenizer: `bytes` (UTF-8 bytes, no download); a transformers tokenizer by Hub name or local folder, preferably
            that of the encoder; or the tokenizer of an open_clip model, e.g. `open_clip:ViT-B-32`.
        length: Maximum number of tokens, including start and end tokens. Longer captions are truncated.
        field: Name of the shard field if it is not `text`.
    """

    name: ClassVar[str] = "text"
    fields: ClassVar[tuple[str, ...]] = ("text.txt",)
    encoders: ClassVar[Mapping[str, type[Encoder]]] = TEXT_ENCODERS

    tokenizer: str = "bytes"
    length: Annotated[int, Ge(2)] = 128
    field: str | None = None

    def decode(self, data: bytes, meta: Mapping[str, Any]) -> list[str]:
        """Split into non-empty captions, normalised to Unicode NFC.

        Raises:
            ValueError: The text is empty, too long, not UTF-8 or binary.
        """
        if len(data) > LONGEST:
            raise ValueError(f"{len(data)} bytes of captions; at most {LONGEST} are accepted")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"the text is not UTF-8 (byte {error.start}); convert it before packing") from None
        if (marks := most_marks(text)) > MARKS:
            raise ValueError(f"the text has {marks} consecutive combining marks; at most {MARKS} are accepted")
        text = unicodedata.normalize("NFC", text)
        captions = [line for line in map(str.strip, text.splitlines()) if line]
        if not captions:
            raise ValueError("the text is empty: it has no caption")
        if "\0" in text:
            raise ValueError("the text contains zero bytes, so it is a binary file")
        return captions

    def augment(self, value: list[str], geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        """Tokenize a caption: int64 `[N]`, at most `length` tokens."""
        caption = value[0 if rng is None else int(rng.integers(len(value)))]
        return torch.tensor(tokenizer(self.tokenizer).encode(caption, self.length), dtype=torch.int64)

    def collate(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Pad to `ids [B, N]`, int64, with `mask [B, N]`, bool, True for tokens."""
        padding = tokenizer(self.tokenizer).padding
        mask = pad_sequence([torch.ones(len(value), dtype=torch.bool) for value in values], batch_first=True)
        return {"ids": pad_sequence(list(values), batch_first=True, padding_value=padding), "mask": mask}

    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        encoder = build(self.encoders, spec, tokenizer(self.tokenizer).vocabulary)
        if encoder.preprocessing.size < self.length:
            raise ValueError(
                f"encoder {spec['name']} reads at most {encoder.preprocessing.size} tokens, but texts have up to "
                f"{self.length}; set `length` of the modality to {encoder.preprocessing.size}"
            )
        return encoder

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Copy the files of the tokenizer to `folder/tokenizer`; see `Modality.portable`."""
        if self.tokenizer == "bytes" or self.tokenizer.startswith("open_clip:"):  # nothing to copy
            return dict(spec)
        tokenizer(self.tokenizer).save(folder / "tokenizer")
        return {**spec, "tokenizer": "./tokenizer"}

    def picture(self, value: list[str]) -> np.ndarray:
        """Render the first caption in lines of 18 characters. Characters that the font lacks become question marks."""
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
    """Length of the longest run of combining marks."""
    if text.isascii():
        return 0
    runs = groupby(text, lambda letter: unicodedata.combining(letter) > 0)
    return max((sum(1 for _ in run) for marks, run in runs if marks), default=0)
