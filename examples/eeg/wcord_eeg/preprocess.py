"""Preprocessing of EEG for training and, copied by `wcord export`, for the exported student. Needs numpy only."""

import io
import json
from pathlib import Path

import numpy as np


def decode(data: bytes, channels: int) -> np.ndarray:
    """A `.npy` file to float32 `[channels, time]` in microvolts, re-referenced to the mean of all channels."""
    try:
        series = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header can raise any error of Python's parser
        raise ValueError(f"not a complete .npy file: {error}") from None
    if series.ndim != 2 or len(series) != channels or not series.size or series.dtype.kind not in "iuf":
        raise ValueError(f"{series.dtype} {list(series.shape)}; expected numbers [{channels} channels, time]")
    series = series.astype(np.float32)
    if not np.isfinite(series).all():
        raise ValueError("NaN or infinite readings; interpolate or reject them")
    return series - series.mean(0)


def window(series: np.ndarray, size: int, position: float = 0.5) -> np.ndarray:
    """A window of the series, `[channels, size]`; `position` 0 is its start, 1 its end.

    Short series are zero-padded at the end.
    """
    start = round(position * max(series.shape[1] - size, 0))
    part = series[:, start : start + size]
    return np.pad(part, ((0, 0), (0, size - part.shape[1])))


def read(data: bytes) -> dict[str, np.ndarray]:
    """The input of the exported network from the bytes of a file."""
    about = json.loads((Path(__file__).parent / "preprocessing.json").read_text())
    return {"eeg": window(decode(data, about["settings"]["channels"]), about["size"])}


def batch(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Combine results of `read`."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
