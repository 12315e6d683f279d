"""A teacher whose features come from a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from losses import Dims, Features
from pipeline.data.feature_cache import Cache


class CachedTeacher(nn.Module):
    """Replaces the teacher network if the teacher's features are part of the batch.

    Args:
        cache: The cache.
    """

    def __init__(self, cache: Cache) -> None:
        super().__init__()
        self.cache, self.classes = cache, cache.classes

    @property
    def dims(self) -> Dims:
        """The sizes of the cached `Features`."""
        classes = len(self.classes) if self.classes else None
        return Dims(self.cache.pooled, tuple(self.cache.maps), classes, self.cache.dense)

    def forward(self, x: Mapping[str, Any]) -> Features:
        """Build `Features` from the cached tensors.

        Args:
            x: `pooled [B, D]`, `logits [B, K]`, `map0 [B, C, H, W]` and so on, in the dtype of the cache.
        """
        return Features(x["pooled"], [x[f"map{i}"] for i in range(len(self.cache.maps))], x.get("logits"))
