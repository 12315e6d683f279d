"""The conformance check that the author of a modality runs: does the adapter keep the Modality contract?"""

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
    """Check an adapter with real samples; AssertionError says what breaks the contract and what to do.

    data: the bytes of one or more samples, as a shard holds them; best of several sizes. meta: their meta.json.
    specs: encoders to build and run, e.g. `[{"name": "cnn5"}]`. size: the input size to ask `augment` for.
    """
    samples = [data] if isinstance(data, bytes) else list(data)
    require(samples, "data: give the bytes of at least one sample")
    meta = meta or {}
    check_declaration(type(adapter))
    check_pickle(adapter)
    check_bad_bytes(adapter, samples, meta)
    values = [adapter.decode(sample, meta) for sample in samples]
    again = [adapter.decode(sample, meta) for sample in samples]
    require(same(values, again), "decode: the same bytes gave two values; what is random belongs into augment")
    for value in values:
        check_augment(adapter, value, size)
        check_flip(adapter, value, size)
        check_picture(adapter, value)
    check_collate(adapter, values, size)
    for spec in specs:
        check_encoder(adapter, spec, values)


def require(good: Any, message: str) -> None:
    """An assertion that `python -O` keeps."""
    if not good:
        raise AssertionError(message)


def check_declaration(cls: type[Modality]) -> None:
    """What is known of the class before any data: name, fields, encoders, and keywords that check configs."""
    name, fields = getattr(cls, "name", None), getattr(cls, "fields", None)
    require(isinstance(name, str), f"{cls.__name__}.name: give the class a name, e.g. `name = 'depth'`")
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
    """After the first `skip` parameters, a constructor's own are keywords with annotations."""
    for parameter in list(inspect.signature(cls).parameters.values())[skip:]:
        require(
            parameter.kind is parameter.KEYWORD_ONLY and parameter.annotation is not parameter.empty,
            f"{cls.__name__}({parameter.name}): make it keyword-only and annotate it: configs are checked by that",
        )


def check_pickle(adapter: Modality) -> None:
    """A copy by pickle is of the same class: adapters travel to loader workers."""
    try:
        copied = pickle.loads(pickle.dumps(adapter))  # noqa: S301 - its own bytes
    except Exception as error:
        raise AssertionError(f"the adapter does not pickle, so no loader worker can have it: {error}") from error
    require(type(copied) is type(adapter), "the adapter's copy by pickle is of another class")


def check_bad_bytes(adapter: Modality, samples: Sequence[bytes], meta: Mapping[str, Any]) -> None:
    """Bytes of something else raise ValueError: the stream counts and reports that, and stops at all other errors."""
    noise = np.random.default_rng(0).bytes(1000)
    cases = {"no bytes at all": b"", "random bytes": noise, "a sample cut in half": samples[0][: len(samples[0]) // 2]}
    for case, data in cases.items():
        try:
            adapter.decode(data, meta)
        except ValueError:
            continue
        except Exception as error:
            raise AssertionError(f"decode: {case} raised {type(error).__name__}, not ValueError: {error}") from error
        require(data, "decode: no bytes at all gave a value; raise ValueError")


def check_augment(adapter: Modality, value: Any, size: int) -> None:
    """Nothing random without rng, the same from the same rng, and the decoded value stays as it is."""
    before = copy.deepcopy(value)
    for geometry in GEOMETRIES:
        tensor = adapter.augment(value, geometry, size, None)
        check_tensor(tensor)
        require(
            same(value, before), "augment: it changed the decoded value, which other views still read; work on a copy"
        )
        require(
            same(tensor, adapter.augment(value, geometry, size, None)),
            "augment: without rng (in evaluation) two calls gave two results; nothing may be random then",
        )
        drawn = [adapter.augment(value, geometry, size, np.random.default_rng(7)) for _ in range(2)]
        check_tensor(drawn[0])
        require(same(*drawn), "augment: two rngs of one seed gave two results; draw only from the rng that is given")
        require(drawn[0].dtype == tensor.dtype, f"augment: {drawn[0].dtype} with rng, {tensor.dtype} without")


def check_tensor(tensor: Any) -> None:
    """uint8, float32 or int64, and finite."""
    require(isinstance(tensor, Tensor), f"augment: returned {type(tensor).__name__}; return a torch.Tensor")
    require(
        tensor.dtype in (torch.uint8, torch.float32, torch.int64),
        f"augment: dtype {tensor.dtype}; images are uint8, token ids int64, everything else float32",
    )
    require(
        not tensor.is_floating_point() or bool(tensor.isfinite().all()),
        "augment: NaN or infinity in the tensor; replace what has no value by 0, and say where in a channel of its own",
    )


def check_flip(adapter: Modality, value: Any, size: int) -> None:
    """An image-like modality that follows the geometry also follows its flip, or it would not match the others."""
    plain, flipped, cropped = (adapter.augment(value, g, size, None) for g in (WHOLE, FLIPPED, GEOMETRIES[2]))
    if plain.ndim != 3 or plain.shape[1:] != (size, size) or same(plain, cropped):
        return
    # Directions, such as normals, also change their sign.
    flipped, plain = flipped.float().abs(), plain.float().abs()
    straight, mirrored = (flipped - plain).abs().mean(), (flipped - plain.flip(2)).abs().mean()
    # A picture that is nearly its own mirror image tells little.
    require(
        mirrored <= 2 * straight, "augment: it crops as the geometry says, but does not mirror left and right on flip"
    )


def check_collate(adapter: Modality, values: Sequence[Any], size: int) -> None:
    """Tensors of all samples and geometries become one batch."""
    tensors = [adapter.augment(value, geometry, size, None) for value in values for geometry in GEOMETRIES]
    try:
        adapter.collate(tensors)
    except Exception as error:
        shapes = sorted({tuple(tensor.shape) for tensor in tensors})
        raise AssertionError(
            f"collate: {error}. augment gave the shapes {shapes}: make them one shape, or write a collate that pads"
        ) from error


def check_encoder(adapter: Modality, spec: Mapping[str, Any], values: Sequence[Any]) -> None:
    """The encoder's Features are of the sizes that it stated before it saw data."""
    encoder, who = adapter.encoder(spec), f"encoder {dict(spec)}"
    size = encoder.preprocessing.size
    batch = [adapter.augment(value, geometry, size, None) for value in values for geometry in (WHOLE, FLIPPED)]
    features = encoder(adapter.collate(batch))
    require(isinstance(features, Features), f"{who}: forward returned {type(features).__name__}; return Features")
    expected = (len(batch), encoder.dim)
    require(features.pooled.shape == expected, f"{who}: pooled is {tuple(features.pooled.shape)}, not {expected}")
    channels = tuple(m.shape[1] if m.ndim == 4 else m.shape[-1] for m in features.maps)
    require(
        channels == encoder.map_channels,
        f"{who}: its maps have {channels} channels, its map_channels say {encoder.map_channels}",
    )
    require(all(len(m) == len(batch) for m in features.maps), f"{who}: a map is not of the batch's size")
    require(features.logits is None, f"{who}: logits must be None; the classifier is the model's, not the encoder's")
    require(bool(features.pooled.isfinite().all()), f"{who}: pooled has NaN or infinity")
    trainable = any(p.requires_grad for p in encoder.parameters())
    require(
        features.pooled.requires_grad or not trainable, f"{who}: no gradient reaches pooled; is something detached?"
    )


def check_picture(adapter: Modality, value: Any) -> None:
    """uint8 RGB `[H, W, 3]`, and a caption."""
    picture = adapter.picture(value)
    good = isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    require(good, "picture: return a uint8 RGB array [H, W, 3]")
    require(isinstance(adapter.caption(value), Caption), "caption: return a modalities.base.Caption")


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, inside of dataclasses and containers as well."""
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
