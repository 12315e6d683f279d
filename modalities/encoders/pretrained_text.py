"""Any text encoder of the transformers library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing
from modalities.encoders.pretrained import freeze_unused, read_config, read_network
from modalities.encoders.text_transformer import pool


class PretrainedText(Encoder):
    """A transformers text encoder by hub name or local folder: BERT and its kin, CLIP's and SigLIP's text side.

    vocabulary: token ids of the modality's tokenizer; the model must know as many.
    model: `sentence-transformers/all-MiniLM-L6-v2`, `runs/bert`, ...; its code must be in transformers itself.
    weights: `random` builds the network from its config alone. pooling: `mean` over the tokens, the first (`cls`), the
    `last` one, or `pooler`, the model's own, which CLIP's text side is trained with. The maps are all its hidden
    states `[B, N, C]`. Parameters that `pooled` does not depend on are frozen: DDP wants a gradient for every other.
    Raises ValueError for a model that cannot be found, has no safetensors weights or not all of them, does not read
    text, or knows fewer tokens than the tokenizer.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        model: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        pooling: Literal["mean", "cls", "last", "pooler"] = "mean",
    ) -> None:
        config = read_config(model, part="text_config")
        known = getattr(config, "vocab_size", None)
        if known is None:
            raise ValueError(f"transformers: {model} does not read text; give a text encoder such as BERT")
        if known < vocabulary:
            raise ValueError(
                f"transformers: {model} knows {known} tokens, the tokenizer has {vocabulary}; set the modality's "
                f"`tokenizer` to the model's own, e.g. {model}"
            )
        # RoBERTa counts its positions from behind the padding id.
        offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
        super().__init__(Preprocessing(getattr(config, "max_position_embeddings", 512) - offset, (0.0,), (1.0,)))
        self.config, self.pooling = config, pooling
        self.network, _ = read_network(model, config, weights)
        example = {"ids": torch.zeros(1, 2, dtype=torch.long), "mask": torch.ones(1, 2, dtype=torch.bool)}
        features = freeze_unused(self, example, f"transformers: {model} does not run on two tokens")
        self.dim, self.map_channels = features.pooled.shape[1], tuple(m.shape[2] for m in features.maps)

    def forward(self, x: dict[str, Tensor]) -> Features:
        """x: `ids [B, N]`, int64, and `mask [B, N]`, True where there is a token."""
        mask = x["mask"]
        out = self.network(input_ids=x["ids"], attention_mask=mask.long(), output_hidden_states=True)
        pooled = out.pooler_output if self.pooling == "pooler" else pool(out.last_hidden_state, mask, self.pooling)
        return Features(pooled, list(out.hidden_states))

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Write the model's config to `folder/encoder`; see `Encoder.portable`."""
        self.config.save_pretrained(folder / "encoder")
        return {**spec, "model": "./encoder", "weights": "random"}
