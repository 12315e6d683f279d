"""Audio with any sample rate and number of channels, mixed to mono and resampled to the rate in the config."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modalities.base import Caption, Modality
from modalities.encoders import AUDIO_ENCODERS, Encoder, build
from modalities.geometry import Geometry
from modalities.sound_header import cure, knows_its_length, with_length
from modalities.torchaudio_loader import import_soundfile, import_torchaudio

MOST_VALUES = 40_000_000
"""Upper limit on samples x channels of a file, before and after resampling: 20 minutes of stereo at 16 kHz."""
MOST_FILTER = 16_000_000
"""Upper limit on the size of a resampling filter. For rates without a common factor, it would take gigabytes."""


PLAYED = 16_000
"""Sample rate (Hz) of the audio in a report. MP3 supports only a few rates."""


@dataclass(frozen=True, kw_only=True)
class Audio(Modality):
    """Waveforms, float32 in [-1, 1].

    Args:
        rate: Sample rate in Hz. All audio is resampled to it.
        seconds: Maximum length of an excerpt in seconds. Training draws its position at random; evaluation takes the
            centre. Shorter excerpts are padded to the longest one in the batch.
        gain: Maximum random gain in training, in dB in both directions.
        snr: Signal-to-noise ratio in dB of white noise that is added to every excerpt. Training draws new noise each
            time; evaluation uses the same noise for the same excerpt. None adds no noise.
        field: Name of the shard field if it is not `audio`.
    """

    name: ClassVar[str] = "audio"
    fields: ClassVar[tuple[str, ...]] = ("audio.wav", "audio.flac", "audio.ogg", "audio.mp3")
    encoders: ClassVar[Mapping[str, type[Encoder]]] = AUDIO_ENCODERS

    rate: Annotated[int, Ge(1000)] = 16_000
    seconds: Annotated[float, Gt(0)] = 4.0
    gain: Annotated[float, Ge(0)] = 6.0
    snr: float | None = None
    field: str | None = None

    def decode(self, data: bytes, meta: Mapping[str, Any]) -> np.ndarray:
        """Decode an audio file to mono, float32 `[samples]` at `rate`: the mean over the channels."""
        mono, source_rate = read_sound(data, self.rate)
        if source_rate != self.rate:
            mono = _resampler(source_rate, self.rate)(torch.from_numpy(mono)).numpy()
        return mono

    def augment(self, value: np.ndarray, geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        """Cut an excerpt, add noise and change the gain: float32 `[samples]`, at most `seconds * rate` samples."""
        length = min(max(round(self.seconds * self.rate), 1), len(value))
        spare = len(value) - length
        start = spare // 2 if rng is None else int(rng.integers(spare + 1))
        excerpt = value[start : start + length]
        if self.snr is not None:
            noise = (rng or np.random.default_rng(zlib.crc32(excerpt.tobytes()))).standard_normal(length, np.float32)
            level = float(np.sqrt(np.mean(np.square(excerpt)))) * 10 ** (-self.snr / 20)
            excerpt = excerpt + noise * np.float32(level)
        factor = 1.0 if rng is None else 10 ** (rng.uniform(-self.gain, self.gain) / 20)
        return torch.from_numpy(excerpt * np.float32(factor))

    def collate(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Pad with zeros to `waveform [B, T]`, float32; `length [B]`, int64, contains the lengths in samples."""
        lengths = torch.tensor([len(value) for value in values])
        return {"waveform": pad_sequence(list(values), batch_first=True), "length": lengths}

    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        import_soundfile()  # fail early, since decoding requires it
        return build(self.encoders, spec, self.rate)

    def picture(self, value: np.ndarray) -> np.ndarray:
        """Render the mel spectrogram with a range of 60 dB, low frequencies at the bottom."""
        mel = _mel(self.rate)
        # Reflection padding by half a window requires at least one sample more than that.
        padded = np.pad(value, (0, max(mel.n_fft // 2 + 1 - len(value), 0)))
        power = mel(torch.from_numpy(padded))
        decibel = 10 * power.clamp(min=1e-10).log10()
        shade = ((decibel - decibel.max()) / 60 + 1).clamp(0, 1).mul(255).byte().numpy()
        coloured = cv2.applyColorMap(np.ascontiguousarray(shade[::-1]), cv2.COLORMAP_MAGMA)
        return cv2.cvtColor(cv2.resize(coloured, (144, 96)), cv2.COLOR_BGR2RGB)

    def caption(self, value: np.ndarray) -> Caption:
        """The duration as text, and the excerpt that evaluation uses as a mono MP3 at 16 kHz."""
        excerpt = self.augment(value, Geometry(), 0, None)
        if self.rate != PLAYED:
            excerpt = _resampler(self.rate, PLAYED)(excerpt)
        file = io.BytesIO()
        import_soundfile().write(file, excerpt.numpy(), PLAYED, format="MP3")
        return Caption(f"{len(value) / self.rate:.1f} s", sound=file.getvalue())


def read_sound(data: bytes, rate: int) -> tuple[np.ndarray, int]:
    """Read an audio file without resampling it.

    Args:
        data: The bytes of a WAV, FLAC, OGG or MP3 file.
        rate: Target sample rate in Hz, used only to limit the memory of the resampled audio.

    Returns:
        The mean over the channels, float32 `[samples]`, and the sample rate of the file in Hz.

    Raises:
        ValueError: The file is damaged, truncated, silent, too long, or not finite, or its rate cannot be resampled.
    """
    soundfile = import_soundfile()
    try:
        with soundfile.SoundFile(io.BytesIO(with_length(data))) as file:
            exact = knows_its_length(data)
            grown = max(1, rate / file.samplerate)
            if file.frames * file.channels * grown > MOST_VALUES:
                raise ValueError(f"{file.frames / file.samplerate:.0f} s of audio is too long for one sample; split it")
            shared = math.gcd(file.samplerate, rate)
            if file.samplerate // shared * (rate // shared) > MOST_FILTER:
                raise ValueError(
                    f"cannot resample from {file.samplerate} Hz to {rate} Hz: the filter is too large; convert the "
                    "file first"
                )
            sound, source_rate = file.read(dtype="float32", always_2d=True), file.samplerate
            if exact and len(sound) < file.frames:
                raise ValueError(f"damaged audio: {len(sound)} of {file.frames} samples are readable; copy it again")
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"cannot read an audio file from {len(data)} bytes: {error.error_string}{cure(data)}"
        ) from None
    if not len(sound):
        raise ValueError("the audio has no samples")
    mono = mean_of_channels(sound)
    if not np.isfinite(mono).all():
        raise ValueError("the audio contains NaN or infinite samples; export it again")
    if not mono.any():
        raise ValueError("the audio is completely silent")
    return mono, source_rate


def mean_of_channels(sound: np.ndarray) -> np.ndarray:
    """The mean of `[samples, channels]` over the channels; whole columns at once take a third of NumPy's time."""
    total: np.ndarray = sound[:, 0].copy()
    for channel in range(1, sound.shape[1]):
        total += sound[:, channel]
    return total / np.float32(sound.shape[1]) if sound.shape[1] > 1 else total


@lru_cache(maxsize=8)
def _resampler(source: int, target: int) -> Any:
    """Cached per pair of rates, since computing the filter is slow."""
    return import_torchaudio().transforms.Resample(source, target)


@lru_cache(maxsize=8)
def _mel(rate: int) -> Any:
    window = max(rate // 40, 16)
    return import_torchaudio().transforms.MelSpectrogram(
        rate, n_fft=max(window, 512), win_length=window, hop_length=max(rate // 100, 1), n_mels=64
    )
