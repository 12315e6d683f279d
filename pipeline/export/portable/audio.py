"""Preprocessing of audio. Requires numpy and soundfile."""

import io
import json
from pathlib import Path

import numpy as np
import soundfile

ABOUT = json.loads((Path(__file__).parent / "preprocessing.json").read_text())
RATE, SECONDS = ABOUT["settings"]["rate"], ABOUT["settings"]["seconds"]


def read(data: bytes) -> dict[str, np.ndarray]:
    """Decode an audio file at the sample rate of the network.

    Args:
        data: The bytes of the file.

    Returns:
        `waveform`, float32 [samples], the centre of the audio, and `length`, its length in samples.

    Raises:
        ValueError: The sample rate is wrong.
    """
    sound, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    if rate != RATE:
        raise ValueError(f"{rate} Hz, expected {RATE} Hz; convert it: ffmpeg -i sound.wav -ar {RATE} converted.wav")
    if not len(sound):
        raise ValueError("no samples; if it was written to a pipe: ffmpeg -ignore_length 1 -i sound.wav converted.wav")
    mono = sound.mean(1)
    length = min(max(round(SECONDS * RATE), 1), len(mono))
    start = (len(mono) - length) // 2
    return {"waveform": mono[start : start + length], "length": np.array(length, np.int64)}


def batch(samples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Combine results of `read` into one input of the network, padded with 0."""
    longest = max(len(sample["waveform"]) for sample in samples)
    waves = [np.pad(sample["waveform"], (0, longest - len(sample["waveform"]))) for sample in samples]
    return {"waveform": np.stack(waves), "length": np.stack([sample["length"] for sample in samples])}
