"""Sound: any sample rate and number of channels, as one channel at a rate of the config's choice."""

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
from modalities.sound_header import knows_its_length
from modalities.torchaudio_loader import import_soundfile, import_torchaudio

MOST_VALUES = 100_000_000
"""Samples times channels that a file may unpack to, before or after resampling: 50 minutes of stereo at 16 kHz."""
MOST_FILTER = 16_000_000
"""Values of a resampling filter: a rate that shares no factor with the wanted one asks for gigabytes."""


PLAYED = 16_000
"""Samples a second (Hz) of what a person hears in a report; MP3 knows few rates."""


@dataclass(frozen=True, kw_only=True)
class Audio(Modality):
    """Waveforms, float32 in [-1, 1].

    rate: samples a second (Hz) that everything is resampled to. seconds: the longest excerpt, drawn at random in
    training, from the middle otherwise; shorter sounds are padded to the longest of their batch. gain: in training,
    loudness changes by up to so many dB. snr: white noise lies over every sound, so many dB below it, as over a bad
    line: drawn anew in training, the same for the same sound otherwise; None: none.
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
        """float32 `[samples]` at `rate`, the mean of the channels."""
        mono, source_rate = read_sound(data, self.rate)
        if source_rate != self.rate:
            mono = _resampler(source_rate, self.rate)(torch.from_numpy(mono)).numpy()
        return mono

    def augment(self, value: np.ndarray, geometry: Geometry, size: int, rng: np.random.Generator | None) -> Tensor:
        """float32 `[samples]`, at most `seconds * rate` of them."""
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
        """`waveform [B, longest]`, padded with 0, and `length [B]` in samples, int64."""
        lengths = torch.tensor([len(value) for value in values])
        return {"waveform": pad_sequence(list(values), batch_first=True), "length": lengths}

    def encoder(self, spec: Mapping[str, Any]) -> Encoder:
        import_soundfile()  # without it nothing could be read: better said before anything starts
        return build(self.encoders, spec, self.rate)

    def picture(self, value: np.ndarray) -> np.ndarray:
        """The mel spectrogram over 60 dB, low notes at the bottom."""
        mel = _mel(self.rate)
        # It mirrors half a window at each end, which takes a sample more than that.
        padded = np.pad(value, (0, max(mel.n_fft // 2 + 1 - len(value), 0)))
        power = mel(torch.from_numpy(padded))
        decibel = 10 * power.clamp(min=1e-10).log10()
        shade = ((decibel - decibel.max()) / 60 + 1).clamp(0, 1).mul(255).byte().numpy()
        coloured = cv2.applyColorMap(np.ascontiguousarray(shade[::-1]), cv2.COLORMAP_MAGMA)
        return cv2.cvtColor(cv2.resize(coloured, (144, 96)), cv2.COLOR_BGR2RGB)

    def caption(self, value: np.ndarray) -> Caption:
        """The excerpt that evaluation hears, as a mono MP3 of 16 kHz, and how long the whole is."""
        excerpt = self.augment(value, Geometry(), 0, None)
        if self.rate != PLAYED:
            excerpt = _resampler(self.rate, PLAYED)(excerpt)
        file = io.BytesIO()
        import_soundfile().write(file, excerpt.numpy(), PLAYED, format="MP3")
        return Caption(f"{len(value) / self.rate:.1f} s", sound=file.getvalue())


def read_sound(data: bytes, rate: int) -> tuple[np.ndarray, int]:
    """The mean of the channels, float32 `[samples]`, and the file's own samples a second.

    Raises ValueError for what cannot be read to its end or heard, and for what is too much to become sound of `rate`.
    """
    soundfile = import_soundfile()
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            exact = knows_its_length(data)
            grown = max(1, rate / file.samplerate)
            if file.frames * file.channels * grown > MOST_VALUES:
                raise ValueError(f"{file.frames / file.samplerate:.0f} s of sound in one sample; cut it")
            shared = math.gcd(file.samplerate, rate)
            if file.samplerate // shared * (rate // shared) > MOST_FILTER:
                raise ValueError(f"sound of {file.samplerate} Hz, too odd a rate to become {rate} Hz; resample it")
            sound, source_rate = file.read(dtype="float32", always_2d=True), file.samplerate
            if exact and len(sound) < file.frames:
                raise ValueError(f"the sound is damaged: {len(sound)} of {file.frames} samples are there; copy it")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{len(data)} bytes are not a readable sound file: {error.error_string}") from None
    if not len(sound):
        raise ValueError("the sound has no samples")
    mono: np.ndarray = sound[:, 0] if sound.shape[1] == 1 else sound.mean(1)
    if not np.isfinite(mono).all():
        raise ValueError("the sound has samples that are not finite (NaN or infinity); export it again")
    if not mono.any():
        raise ValueError("the sound is silent from beginning to end")
    return mono, source_rate


@lru_cache(maxsize=8)
def _resampler(source: int, target: int) -> Any:
    """Its filter is computed once for each pair of rates."""
    return import_torchaudio().transforms.Resample(source, target)


@lru_cache(maxsize=8)
def _mel(rate: int) -> Any:
    window = max(rate // 40, 16)
    return import_torchaudio().transforms.MelSpectrogram(
        rate, n_fft=max(window, 512), win_length=window, hop_length=max(rate // 100, 1), n_mels=64
    )
