"""The conformance check passes what keeps the contract and says what is wrong with the rest; modalities by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import cv2
import numpy as np
import pytest
import torch

import modalities
from losses import Features
from modalities import RGB, Depth, Encoder, Modality
from modalities.encoders import Preprocessing
from modalities.testing import check_modality

SHAPES = [(40, 60), (96, 80)]


def files(channels: int) -> list[bytes]:
    """PNGs of 16 bit with one channel, or of 8 bit with three."""
    rng = np.random.default_rng(0)
    dtype, shape = (np.uint16, ()) if channels == 1 else (np.uint8, (3,))
    return [cv2.imencode(".png", rng.integers(0, 250, (*s, *shape)).astype(dtype))[1].tobytes() for s in SHAPES]


class Level(Encoder):
    def __init__(self, channels: int, *, width: int = 4) -> None:
        super().__init__(Preprocessing.of(1, 64))
        self.layer = torch.nn.Linear(1, width)
        self.dim = width

    def forward(self, x):
        return Features(self.layer(self.normalise(x).mean((1, 2, 3))[:, None]))


@dataclass(frozen=True, kw_only=True)
class Sonar(Modality):
    """A modality of somebody's own: grey pictures of 8 bit."""

    name = "sonar"
    fields = ("sonar.bin",)
    encoders = {"level": Level}  # noqa: RUF012 - as short as an author would write it
    gain: float = 1.0

    def decode(self, data, meta):
        if len(data) != 32 * 32:
            raise ValueError(f"{len(data)} bytes, 1024 expected")
        return np.frombuffer(data, np.uint8).reshape(32, 32)

    def augment(self, value, geometry, size, rng):
        image = geometry.resize(value, size).astype(np.float32) * self.gain
        return torch.from_numpy(image[None] + (0 if rng is None else np.float32(rng.normal())))

    def encoder(self, spec):
        return Level(1)

    def picture(self, value):
        return np.repeat(value[..., None], 3, 2)


SCAN = np.random.default_rng(0).bytes(32 * 32)


@pytest.mark.parametrize("adapter", [Depth(), Depth(centre=True), Depth(input="depth+normals"), Depth(input="image")])
def test_depth_keeps_the_contract(adapter):
    camera = {"fx": 70, "fy": 70, "cx": 30, "cy": 20}
    check_modality(adapter, files(1), {"intrinsics": camera}, [{"name": "cnn5"}, {"name": "resnet", "depth": 8}])


def test_rgb_keeps_the_contract():
    check_modality(RGB(), files(3), specs=[{"name": "cnn5", "width": 8}])
    check_modality(RGB(), files(3)[0], size=33)


def test_a_modality_of_ones_own_passes():
    check_modality(Sonar(), SCAN, specs=[{"name": "level"}])


class NoFields(Sonar):
    fields = "sonar.bin"  # type: ignore[assignment]


class Positional(Sonar):
    def __init__(self, gain=1.0):
        super().__init__(gain=gain)


class StrangeEncoder(Sonar):
    encoders = {"level": torch.nn.Linear}  # type: ignore[dict-item]  # noqa: RUF012


class Unpicklable(Sonar):
    def __reduce__(self):
        raise TypeError("a lock inside")


class KeyErrorOnBadBytes(Sonar):
    def decode(self, data, meta):
        return super().decode(data, meta) if len(data) == 1024 else {}["header"]


class AcceptsNothing(Sonar):
    def decode(self, data, meta):
        return super().decode(data or SCAN, meta)


class ChangingDecode(Sonar):
    calls = 0

    def decode(self, data, meta):
        self.calls += 1  # not random: random values may be equal by chance
        return super().decode(data, meta) + np.uint8(self.calls)


class RandomEvaluation(Sonar):
    def augment(self, value, geometry, size, rng):
        return super().augment(value, geometry, size, rng or np.random.default_rng())


class GlobalRandom(Sonar):
    def augment(self, value, geometry, size, rng):
        extra = 0 if rng is None else np.random.random()
        return super().augment(value, geometry, size, rng) + extra


class Doubles(Sonar):
    def augment(self, value, geometry, size, rng):
        return super().augment(value, geometry, size, rng).double()


class Array(Sonar):
    def augment(self, value, geometry, size, rng):
        return super().augment(value, geometry, size, rng).numpy()


class NotANumber(Sonar):
    def augment(self, value, geometry, size, rng):
        return super().augment(value, geometry, size, rng) / 0 * 0


class ChangesValue(Sonar):
    def decode(self, data, meta):
        return super().decode(data, meta).copy()

    def augment(self, value, geometry, size, rng):
        tensor = super().augment(value, geometry, size, rng)
        value[0, 0] = 7
        return tensor


class IgnoresFlip(Sonar):
    def augment(self, value, geometry, size, rng):
        tensor = super().augment(value, geometry, size, rng)
        return tensor.flip(2) if geometry.flip else tensor


class Ragged(Sonar):
    def augment(self, value, geometry, size, rng):
        return super().augment(value, geometry, size, rng)[:, : 40 if geometry.flip else 50]


class GreyPicture(Sonar):
    def picture(self, value):
        return value


class WrongDims(Sonar):
    def encoder(self, spec):
        encoder = Level(1)
        encoder.dim = 5
        return encoder


class Detached(Sonar):
    def encoder(self, spec):
        encoder = Level(1)
        forward = encoder.forward
        encoder.forward = lambda x: Features(forward(x).pooled.detach())
        return encoder


class MapsUnstated(Sonar):
    def encoder(self, spec):
        encoder = Level(1)
        forward = encoder.forward
        encoder.forward = lambda x: Features(forward(x).pooled, [x])
        return encoder


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NoFields, r"NoFields\.fields: 'sonar.bin' must be a tuple"),
        (Positional, r"Positional\(gain\): make it keyword-only"),
        (StrangeEncoder, r"encoders\['level'\] is not a subclass"),
        (Unpicklable, "cannot be pickled.*a lock inside"),
        (KeyErrorOnBadBytes, "empty bytes raised KeyError, not ValueError"),
        (AcceptsNothing, "empty bytes returned a value"),
        (ChangingDecode, "the same bytes gave different values"),
        (RandomEvaluation, "without rng"),
        (GlobalRandom, "the same seed gave different results"),
        (Doubles, r"dtype torch\.float64"),
        (Array, "returned ndarray"),
        (NotANumber, "NaN or infinity"),
        (ChangesValue, "modified the decoded value"),
        (IgnoresFlip, "but not the flip"),
        (Ragged, r"collate: .*shapes \[\(1, 40, 64\), \(1, 50, 64\)\]"),
        (GreyPicture, "uint8 RGB"),
        (WrongDims, r"pooled is \(2, 4\), not \(2, 5\)"),
        (Detached, "no gradient"),
        (MapsUnstated, r"maps have \(1,\) channels, but map_channels is \(\)"),
    ],
)
def test_each_breach_is_named(cls, message):
    with pytest.raises(AssertionError, match=message):
        check_modality(cls(), SCAN, specs=[{"name": "level"}])


def test_a_check_without_samples_is_none():
    with pytest.raises(AssertionError, match="at least one sample"):
        check_modality(Sonar(), [])


# By name


def test_modalities_by_name():
    assert modalities.get("rgb") is RGB
    assert modalities.get("depth") is Depth
    assert modalities.get(f"{__name__}:Sonar") is Sonar


def test_a_package_can_declare_its_modality(monkeypatch):
    point = EntryPoint("sonar", f"{__name__}:Sonar", "wcord.modalities")
    monkeypatch.setattr(modalities, "entry_points", lambda group: [point] if group == "wcord.modalities" else [])
    assert modalities.get("sonar") is Sonar
    with pytest.raises(ValueError, match=r"did you mean 'sonar'.*depth, luminance, points, rgb, sonar"):
        modalities.get("sonra")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpeth", "did you mean 'depth'.*depth, luminance, points, rgb"),
        ("smell", "no 'smell'.*depth, luminance, points, rgb.*package.module:Class"),
        ("nowhere.at_all:Smell", "cannot import nowhere.at_all"),
        (f"{__name__}:Level", "not a subclass of modalities.base.Modality"),
        (f"{__name__}:Smell", "has no 'Smell'"),
    ],
)
def test_names_that_are_none_are_refused_in_words(name, message):
    with pytest.raises(ValueError, match=message):
        modalities.get(name)
