"""Class probabilities from the names of the classes: the text tower of CLIP or SigLIP as a head of its vision tower."""

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
    """A head that nobody trained: the cosine of a photo's embedding to that of a sentence for each class, times the
    scale and plus the bias that the model was trained with (Radford et al. 2021, arXiv 2103.00020).

    encoder: the vision tower. model: hub name or local folder that it was read from, which holds the text tower and the
    tokenizer too. sentences: one for each class; what is longer than the model reads is cut.
    Raises ValueError for an encoder that is not such a tower with its own weights, or a model without the other one.
    """

    def __init__(self, encoder: Encoder, model: str, sentences: Sequence[str]) -> None:
        super().__init__()
        if not (isinstance(encoder, PretrainedVision) and encoder.pooler):
            raise ValueError("needs the encoder `transformers` of CLIP or SigLIP, pretrained, and pooled as they are")
        config = read_config(model, part=None)
        length = getattr(getattr(config, "text_config", None), "max_position_embeddings", None)
        if length is None or not hasattr(config, "vision_config"):
            raise ValueError(f"{model} has no text tower; CLIP and SigLIP have one")
        both: Any = read_network(model, config, "pretrained")[0]
        # SigLIP was trained on texts of full length, and CLIP's do not mind.
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
        """pooled `[B, D]` of the vision tower to logits `[B, K]`."""
        return F.normalize(self.projection(pooled), dim=1) @ self.classes.T * self.scale + self.bias
