"""Conformance tests for authors of modalities: checks that a class follows the Modality contract."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modalities.base import Caption, Encoder, Features, Geometry, Modality

WHOLE, FLIPPED = Geometry(), Geometry(flip=True)
GEOMETRIES = (WHOLE, FLIPPED, Geometry(0.1, 0.2, 0.9, 0.95), Geometry(0.4, 0.4, 0.6, 0.5, flip=True))


def check_modality(
    adapter: Modality,
    data: bytes | Sequence[bytes],
    meta: Mapping[str, Any] | None = None,
    specs: Iterable[Mapping[str, Any]] = (),
    size: int = 64,
) -> None:
    """Check a modality with real samples.

    Args:
        adapter: An instance of the modality.
        data: The bytes of one or more samples, as stored in a shard, ideally of different sizes.
        meta: The `meta.json` of the samples.
        specs: Encoders to build and run, e.g. `[{"name": "cnn5"}]`.
        size: Input size in pixels for `augment`.

    Raises:
        AssertionError: The modality breaks the contract. The message states the problem and how to fix it.

    Example:
        ```python
        def test_thermal() -> None:
            check_modality(Thermal(), Path("tests/sample.png").read_bytes(), specs=[{"name": "cnn5"}])
        ```
    """
    samples = [data] if isinstance(data, bytes) else list(data)
    require(samples, "data: pass the bytes of at least one sample")
    meta = meta or {}
    check_declaration(type(adapter))
    check_pickle(adapter)
    check_bad_bytes(adapter, samples, meta)
    values = [adapter.decode(sample, meta) for sample in samples]
    again = [adapter.decode(sample, meta) for sample in samples]
    require(same(values, again), "decode: the same bytes gave different values; move randomness to augment")
    for value in values:
        check_augment(adapter, value, size)
        check_flip(adapter, value, size)
        check_picture(adapter, value)
    check_collate(adapter, values, size)
    for spec in specs:
        check_encoder(adapter, spec, values)


def require(good: Any, message: str) -> None:
    """An assertion that `python -O` does not remove."""
    if not good:
        raise AssertionError(message)


def check_declaration(cls: type[Modality]) -> None:
    """Check the class: name, fields, encoders, and annotated keywords, which configs are validated against."""
    name, fields = getattr(cls, "name", None), getattr(cls, "fields", None)
    require(isinstance(name, str), f"{cls.__name__}.name: set the name of the class, e.g. `name = 'depth'`")
    require(
        isinstance(fields, tuple) and fields and all(isinstance(f, str) and f for f in fields),
        f"{cls.__name__}.fields: {fields!r} must be a tuple of shard members such as ('depth.png',)",
    )
    for encoder, network in cls.encoders.items():
        require(
            isinstance(network, type) and issubclass(network, Encoder),
            f"{cls.__name__}.encoders[{encoder!r}] is not a subclass of modalities.Encoder",
        )
        check_keywords(network, skip=1)
    check_keywords(cls, skip=0)


def check_keywords(cls: type, skip: int) -> None:
    """Check that all parameters of a constructor, except the first `skip`, are keyword-only and annotated."""
    for parameter in list(inspect.signature(cls).parameters.values())[skip:]:
        require(
            parameter.kind is parameter.KEYWORD_ONLY and parameter.annotation is not parameter.empty,
            f"{cls.__name__}({parameter.name}): make it keyword-only and annotated, since configs are validated "
            "against it",
        )


def check_pickle(adapter: Modality) -> None:
    """Check that a pickled copy has the same class, since the instance is sent to loader workers."""
    try:
        copied = pickle.loads(pickle.dumps(adapter))  # noqa: S301 - pickled one line above
    except Exception as error:
        raise AssertionError(f"the modality cannot be pickled and sent to loader workers: {error}") from error
    require(type(copied) is type(adapter), "a pickled copy of the modality has another class")


def check_bad_bytes(adapter: Modality, samples: Sequence[bytes], meta: Mapping[str, Any]) -> None:
    """Check that invalid bytes raise ValueError. The stream skips and counts such samples; other errors stop it."""
    noise = np.random.default_rng(0).bytes(1000)
    cases = {"empty bytes": b"", "random bytes": noise, "half a sample": samples[0][: len(samples[0]) // 2]}
    for case, data in cases.items():
        try:
            adapter.decode(data, meta)
        except ValueError:
            continue
        except Exception as error:
            raise AssertionError(f"decode: {case} raised {type(error).__name__}, not ValueError: {error}") from error
        require(data, "decode: empty bytes returned a value; raise ValueError")


def check_augment(adapter: Modality, value: Any, size: int) -> None:
    """Check that `augment` is deterministic without rng and for a given seed, and keeps the decoded value unchanged."""
    before = copy.deepcopy(value)
    for geometry in GEOMETRIES:
        tensor = adapter.augment(value, geometry, size, None)
        check_tensor(tensor)
        require(same(value, before), "augment: modified the decoded value, which other views still need; copy it first")
        require(
            same(tensor, adapter.augment(value, geometry, size, None)),
            "augment: two calls without rng gave different results; evaluation must be deterministic",
        )
        drawn = [adapter.augment(value, geometry, size, np.random.default_rng(7)) for _ in range(2)]
        check_tensor(drawn[0])
        require(same(*drawn), "augment: the same seed gave different results; use only rng")
        require(drawn[0].dtype == tensor.dtype, f"augment: {drawn[0].dtype} with rng, {tensor.dtype} without")


def check_tensor(tensor: Any) -> None:
    """Check that a tensor is uint8, float32 or int64, and finite."""
    require(isinstance(tensor, Tensor), f"augment: returned {type(tensor).__name__}; return a torch.Tensor")
    require(
        tensor.dtype in (torch.uint8, torch.float32, torch.int64),
        f"augment: dtype {tensor.dtype}; images are uint8, token ids int64, everything else float32",
    )
    require(
        not tensor.is_floating_point() or bool(tensor.isfinite().all()),
        "augment: NaN or infinity in the tensor; replace missing values by 0 and mark them in an extra channel",
    )


def check_flip(adapter: Modality, value: Any, size: int) -> None:
    """Check that an image-like modality that applies the crop also applies the flip, like the other modalities."""
    plain, flipped, cropped = (adapter.augment(value, g, size, None) for g in (WHOLE, FLIPPED, GEOMETRIES[2]))
    if plain.ndim != 3 or plain.shape[1:] != (size, size) or same(plain, cropped):
        return
    # Directions such as normals also change their sign.
    flipped, plain = flipped.float().abs(), plain.float().abs()
    straight, mirrored = (flipped - plain).abs().mean(), (flipped - plain.flip(2)).abs().mean()
    # Tolerant, since an image can be nearly symmetric.
    require(mirrored <= 2 * straight, "augment: applies the crop of the geometry, but not the flip")


def check_collate(adapter: Modality, values: Sequence[Any], size: int) -> None:
    """Check that tensors of all samples and geometries form one batch."""
    tensors = [adapter.augment(value, geometry, size, None) for value in values for geometry in GEOMETRIES]
    try:
        adapter.collate(tensors)
    except Exception as error:
        shapes = sorted({tuple(tensor.shape) for tensor in tensors})
        raise AssertionError(
            f"collate: {error}. augment returned the shapes {shapes}: return equal shapes, or pad in collate"
        ) from error


def check_encoder(adapter: Modality, spec: Mapping[str, Any], values: Sequence[Any]) -> None:
    """Check that the Features of an encoder have the sizes that it declares."""
    encoder, who = adapter.encoder(spec), f"encoder {dict(spec)}"
    size = encoder.preprocessing.size
    batch = [adapter.augment(value, geometry, size, None) for value in values for geometry in (WHOLE, FLIPPED)]
    features = encoder(adapter.collate(batch))
    require(isinstance(features, Features), f"{who}: forward returned {type(features).__name__}; return Features")
    expected = (len(batch), encoder.dim)
    require(features.pooled.shape == expected, f"{who}: pooled is {tuple(features.pooled.shape)}, not {expected}")
    require(
        features.map_channels == encoder.map_channels,
        f"{who}: its maps have {features.map_channels} channels, but map_channels is {encoder.map_channels}; return "
        "images as [B, C, H, W], time series as [B, C, 1, L], and tokens as [B, N, C]",
    )
    require(all(len(m) == len(batch) for m in features.maps), f"{who}: a map has the wrong batch size")
    require(features.logits is None, f"{who}: logits must be None; the classifier is part of the model")
    require(bool(features.pooled.isfinite().all()), f"{who}: pooled has NaN or infinity")
    trainable = any(p.requires_grad for p in encoder.parameters())
    require(features.pooled.requires_grad or not trainable, f"{who}: pooled has no gradient; is a tensor detached?")


def check_picture(adapter: Modality, value: Any) -> None:
    """Check that the picture is uint8 RGB `[H, W, 3]` and has a caption."""
    picture = adapter.picture(value)
    good = isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    require(good, "picture: return a uint8 RGB array [H, W, 3]")
    require(isinstance(adapter.caption(value), Caption), "caption: return a modalities.base.Caption")


def same(a: Any, b: Any) -> bool:
    """Bitwise equality, recursively through dataclasses and containers."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
