"""Inputs that every loss can take, for what holds of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from losses import LOSSES, Dims, Features, Loss

CLASSES, SAMPLES = 4, 60
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "crd": ("crd", {"samples": SAMPLES, "negatives": 16}),
    "global linear": ("global_contrast", {"link": "linear"}),
    "global bounded": ("global_contrast", {"link": "bounded", "critic": "cosine"}),
    "global log_bounded": ("global_contrast", {"link": "log_bounded", "weighting": "sum", "queue": 16}),
    "global bank": ("global_contrast", {"bank": 16, "queue": 8, "samples": SAMPLES}),
    "global negatives": ("global_contrast", {"negatives": 16, "samples": SAMPLES}),
    "global spectral": ("global_contrast", {"critic": "spectral", "link": "linear"}),
    "global not standardised": ("global_contrast", {"standardise": False, "discount": False}),
    "global without queue": ("global_contrast", {"queue": 0, "discount": False, "exclude": ()}),
    "local shared": ("local_transport", {"space": "shared", "anchor": 1.0}),
    "local ipot": ("local_transport", {"space": "shared", "anchor": 1.0, "solver": "ipot"}),
    "local not standardised": ("local_transport", {"standardise": False}),
    "local unrolled": ("local_transport", {"plan_gradient": "unrolled", "cost": "euclidean"}),
    "local implicit": ("local_transport", {"plan_gradient": "implicit", "iterations": 200}),
    "local raw": ("local_transport", {"space": "raw", "plan_gradient": "unrolled", "cost": "squared_euclidean"}),
    "local raw implicit": ("local_transport", {"space": "raw", "plan_gradient": "implicit", "iterations": 100}),
    "local regression": ("local_transport", {"anchor": 0.0, "plan_gradient": "unrolled"}),
    "local unbalanced": ("local_transport", {"marginal_penalty": 0.5, "cost": "squared_euclidean"}),
    "local annealed": ("local_transport", {"start_epsilon": 1.0, "relational": 0.5, "relative_epsilon": True}),
}
"""Losses with keywords, by a name of their own."""

NAMES = sorted({*LOSSES, *VARIANTS})


def dims(pooled: int, channels: int, size: int = 4) -> Dims:
    return Dims(pooled, (channels, 2 * channels), CLASSES, sizes=((size, size),) * 2)


def sides(name: str, student: Dims, teacher: Dims) -> tuple[Dims, Dims]:
    """The two as they are, or the teacher's twice for a variant that needs features of one size."""
    return (teacher, teacher) if VARIANTS.get(name, (name, {}))[1].get("space") == "raw" else (student, teacher)


def build(name: str, student: Dims, teacher: Dims) -> Loss:
    torch.manual_seed(0)
    kind, keywords = VARIANTS.get(name, (name, {}))
    return LOSSES[kind](student, teacher, **keywords)  # type: ignore[call-arg, arg-type]


class ToyNetwork(torch.nn.Module):
    """The least that has pooled features, maps and logits, `[B, 5]` to `Features`."""

    def __init__(self, dims: Dims, size: int = 4) -> None:
        super().__init__()
        self.dims, self.size = dims, size
        self.pooled = torch.nn.Linear(5, dims.pooled)
        self.maps = torch.nn.ModuleList(torch.nn.Linear(5, c * size**2) for c in dims.maps)
        self.logits = torch.nn.Linear(5, dims.classes or 1)

    def forward(self, x: Tensor) -> Features:
        shapes = zip(self.maps, self.dims.maps, strict=True)
        maps = [layer(x).view(len(x), channels, self.size, self.size) for layer, channels in shapes]
        return Features(self.pooled(x), maps, self.logits(x))


def batch(count: int, seed: int = 0, label: int | None = None) -> dict[str, Tensor]:
    """Labels from -1 on (or all `label`), three groups, and each sample's place in the dataset."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, CLASSES, (count,), generator=rng) if label is None else torch.full((count,), label)
    group = torch.randint(-1, 3, (count,), generator=rng)
    return {"label": labels, "group": group, "index": torch.randperm(SAMPLES, generator=rng)[:count]}


def of_maps(*maps: Tensor) -> Features:
    """Features of which a loss reads the maps only."""
    return Features(torch.empty(len(maps[0]), 8), list(maps))


def assert_agree(found: Tensor, expected: Tensor, leaves: Sequence[Tensor]) -> None:
    """Two values in float64, and their gradients with respect to the leaves, to 1e-8."""
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    gradients = (torch.autograd.grad(x, leaves) for x in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Batch normalisation of `[B, C, ...]`, a channel at a time."""
    channels = []
    for c in range(x.shape[1]):
        mean = x[:, c].sum() / x[:, c].numel()
        variance = ((x[:, c] - mean) ** 2).sum() / x[:, c].numel()
        channels.append(weight[c] * (x[:, c] - mean) / torch.sqrt(variance + 1e-5) + bias[c])
    return torch.stack(channels, 1)


def vectors(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A student's `[n, 5]` and a teacher's `[n, 8]`."""
    rng = torch.Generator().manual_seed(n)
    x = torch.randn(n, 13, generator=rng, dtype=torch.float64).to(dtype)
    return x[:, :5], x[:, 5:]


def logits(n: int, classes: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A student's and a teacher's `[n, classes]`, peaked."""
    rng = torch.Generator().manual_seed(n)
    student, teacher = (3 * torch.randn(2, n, classes, generator=rng, dtype=torch.float64) + 1).to(dtype).unbind()
    return student, teacher
