"""Zero-shot classification: the text tower of CLIP or SigLIP becomes a head of its vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modalities.encoders.base import Encoder
from modalities.encoders.pretrained import PretrainedVision, read_config, read_network
from modalities.tokenizer import Pretrained


class ZeroShot(nn.Module):
    """Zero-shot classifier head: cosine similarity between image and class sentences, with scale and bias.

    The model was trained with this scale and bias (Radford et al. 2021, arXiv 2103.00020).

    Args:
        encoder: The vision tower.
        model: Hub name or local folder of the same model, which also contains the text tower and the tokenizer.
        sentences: One sentence per class. Sentences that are too long for the model are truncated.

    Raises:
        ValueError: The encoder is not a pretrained vision tower that uses its pooler, or the model has no text tower.
    """

    def __init__(self, encoder: Encoder, model: str, sentences: Sequence[str]) -> None:
        super().__init__()
        if not (isinstance(encoder, PretrainedVision) and encoder.pooler):
            raise ValueError(
                "requires `encoder: {name: transformers, model: …}` with a pretrained CLIP or SigLIP model, and "
                "`pooler` must not be false"
            )
        config = read_config(model, part=None)
        length = getattr(getattr(config, "text_config", None), "max_position_embeddings", None)
        if length is None or not hasattr(config, "vision_config"):
            raise ValueError(f"{model} has no text tower; use CLIP or SigLIP")
        both: Any = read_network(model, config, "pretrained")[0]
        # SigLIP was trained with padding to the full length; CLIP gives the same result with it.
        tokens = Pretrained(model).own(
            list(sentences), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        known = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        with torch.no_grad():
            classes: Tensor = both.eval().get_text_features(**known).pooler_output
        self.projection: nn.Module = getattr(both, "visual_projection", nn.Identity())
        self.classes: Tensor
        self.scale: Tensor
        self.bias: Tensor
        self.register_buffer("classes", F.normalize(classes, dim=1))
        self.register_buffer("scale", both.logit_scale.detach().exp())
        self.register_buffer("bias", getattr(both, "logit_bias", torch.zeros(1)).detach())

    def forward(self, pooled: Tensor) -> Tensor:
        """Map `pooled [B, D]` of the vision tower to logits `[B, K]`."""
        return F.normalize(self.projection(pooled), dim=1) @ self.classes.T * self.scale + self.bias
