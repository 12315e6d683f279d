"""A small text encoder: a transformer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing

Pooling = Literal["mean", "cls", "last"]


class TextTransformer(Encoder):
    """Token and learnt position embeddings, pre-norm transformer layers (Xiong et al. 2020, arXiv 2002.04745).

    Args:
        vocabulary: Number of token ids.
        length: Maximum number of tokens.
        width: Width of every layer, a multiple of `heads`.
        depth: Number of layers.
        heads: Number of attention heads.
        dropout: Dropout rate in every layer.
        pooling: `mean` over the tokens, the first token (`cls`), or the `last` token.

    Raises:
        ValueError: `width` is not a multiple of `heads`.
    """

    reads_pictures: ClassVar[bool] = False

    def __init__(
        self,
        vocabulary: int,
        *,
        length: Annotated[int, Ge(2)] = 128,
        width: Annotated[int, Gt(0)] = 128,
        depth: Annotated[int, Gt(0)] = 3,
        heads: Annotated[int, Gt(0)] = 4,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.1,
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__(Preprocessing(length, (0.0,), (1.0,)))
        if width % heads:
            raise ValueError(f"text_transformer: width {width} is not a multiple of heads {heads}")
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        for embedding in (self.token, self.position):
            nn.init.normal_(embedding.weight, std=0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.pooling = pooling
        self.dim, self.map_channels = width, (width,) * depth

    def forward(self, x: dict[str, Tensor]) -> Features:
        """Encode `ids [B, N]`, int64, with `mask [B, N]`, True for tokens; the maps are `[B, N, C]`."""
        ids, mask = x["ids"], x["mask"]
        out = self.token(ids) + self.position.weight[: ids.shape[1]]
        maps = []
        for layer in self.layers:
            out = layer(out, src_key_padding_mask=~mask)
            maps.append(out * mask[..., None])
        return Features(pool(self.norm(out), mask, self.pooling), maps)


def pool(tokens: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool tokens `[B, N, C]` with a mask `[B, N]` to `[B, C]`."""
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "last":
        return tokens[torch.arange(len(tokens), device=tokens.device), mask.sum(1) - 1]
    weight = mask[..., None].to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1)
