"""The sound of an impact on an object: modal synthesis, a sum of damped sinusoids."""

from __future__ import annotations

import io
import wave

import numpy as np

RATE = 16_000
SAMPLES = 8_000
_TIME = (np.arange(SAMPLES) / RATE).astype(np.float32)

# Material: (pitch of a body of one metre in Hz, damping of every mode in 1/s, additional damping per Hz).
# Stiff and light materials have a high pitch; internal friction damps high modes first.
MATERIALS: dict[str, tuple[float, float, float]] = {
    "metal": (190.0, 4.0, 0.0010),
    "wood": (120.0, 28.0, 0.0180),
    "plastic": (85.0, 35.0, 0.0300),
    "glass": (230.0, 9.0, 0.0025),
    "ceramic": (165.0, 16.0, 0.0060),
    "rubber": (38.0, 70.0, 0.1000),
}

# Shape: (a, p) of the frequency ratios ((k + a) / (1 + a)) ** p of mode k = 1, 2, ...: from dense, nearly harmonic
# modes (strings, air columns; p = 1) to the widely spaced ones of bars and shells (p = 2).
SERIES: dict[str, tuple[float, float]] = {
    "ball": (1.5, 2.0),
    "box": (1.0, 1.2),
    "cylinder": (0.0, 1.2),
    "cone": (0.4, 1.4),
    "ring": (0.0, 2.0),
    "pyramid": (0.8, 1.6),
    "mug": (0.2, 1.7),
    "bottle": (0.0, 1.0),
    "bowl": (0.6, 2.0),
    "mushroom": (0.3, 1.0),
    "stool": (1.6, 1.0),
    "chair": (2.4, 1.0),
    "arch": (0.5, 1.8),
    "dumbbell": (0.2, 1.3),
    "staircase": (2.4, 1.5),
    "cross": (0.9, 1.9),
}


def impact(shape: str, material: str, size: float, rng: np.random.Generator) -> np.ndarray:
    """Synthesise an impact: half a second at 16 kHz.

    Args:
        shape: Name of the class.
        material: Name of the material.
        size: Largest extent of the object in metres.
        rng: Source of randomness.

    Returns:
        float32 `[8000]` in [-1, 1].
    """
    pitch, damping, friction = MATERIALS[material]
    offset, power = SERIES[shape]
    mode = np.arange(1, 13)
    frequency = pitch / size * ((mode + offset) / (1 + offset)) ** power * rng.normal(1, 0.01, mode.size)
    gain = rng.uniform(0.2, 1.0, mode.size) / mode**0.5  # the excited modes depend on where the object is hit
    audible = frequency < 0.47 * RATE
    frequency, gain = frequency[audible], gain[audible]
    decay = (damping + friction * frequency) * rng.uniform(0.8, 1.25)

    start = int(rng.integers(80, 800))
    time = _TIME[: SAMPLES - start, None]
    phase, fall = (2 * np.pi * frequency).astype(np.float32), decay.astype(np.float32)
    ringing = (np.exp(-fall * time) * np.sin(phase * time)) @ gain.astype(np.float32)
    click = rng.standard_normal(48) * np.linspace(1, 0, 48) * rng.uniform(0.05, 0.3)
    sound = rng.normal(0, 10 ** rng.uniform(-3.5, -2.0), SAMPLES).astype(np.float32)
    ringing[:48] += click
    sound[start:] += ringing / np.abs(ringing).max()
    return sound * np.float32(rng.uniform(0.3, 0.9) / np.abs(sound).max())


def wav(sound: np.ndarray) -> bytes:
    """Encode float samples `[N]` in [-1, 1] as a WAV file: 16 kHz, mono, 16-bit PCM."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(np.round(sound * 32767).astype("<i2").tobytes())
    return file.getvalue()
