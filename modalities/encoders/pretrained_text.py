"""Any text encoder of the transformers library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing
from modalities.encoders.library import measure
from modalities.encoders.lora import Lora, add_lora, without_lora
from modalities.encoders.pretrained import read_config, read_network
from modalities.encoders.text_transformer import pool


class PretrainedText(Encoder):
    """A transformers text encoder by Hub name or local folder: BERT and its variants, the text tower of CLIP or SigLIP.

    The maps are all hidden states `[B, N, C]`. Parameters that `pooled` does not depend on are frozen, since DDP
    expects gradients for all trainable parameters.

    Args:
        vocabulary: Vocabulary size of the modality's tokenizer, at most that of the model.
        model: `sentence-transformers/all-MiniLM-L6-v2`, `runs/bert`, ... Its code must be part of transformers.
        weights: `pretrained`, or `random` to build the network from its config alone.
        pooling: `mean` over the tokens, the first token (`cls`), the `last` token, or `pooler`, the pooler output of
            the model, with which the text tower of CLIP was trained.
        lora: LoRA, for a student: `{rank: 8, alpha: 16, targets: [q_proj, v_proj], dropout: 0.0}`, each optional. Only
            adapters of the linear layers in `targets` (by default, of all) are trained. Requires peft.

    Raises:
        ValueError: The model cannot be found, lacks weights (or has none as safetensors), is not a text model, or has a
            smaller vocabulary than the tokenizer.
    """

    reads_pictures: ClassVar[bool] = False

    def __init__(
        self,
        vocabulary: int,
        *,
        model: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        pooling: Literal["mean", "cls", "last", "pooler"] = "mean",
        lora: Lora | None = None,
    ) -> None:
        config = read_config(model, part="text_config")
        known = getattr(config, "vocab_size", None)
        if known is None:
            raise ValueError(f"transformers: {model} is not a text model; use a text encoder such as BERT")
        if known < vocabulary:
            raise ValueError(
                f"transformers: {model} has a vocabulary of {known} tokens, but the tokenizer has {vocabulary}; set "
                f"`tokenizer` of the modality to that of the model, e.g. {model}"
            )
        # RoBERTa numbers positions from the padding id + 1.
        offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
        super().__init__(Preprocessing(getattr(config, "max_position_embeddings", 512) - offset, (0.0,), (1.0,)))
        self.config, self.pooling = config, pooling
        self.network, _ = read_network(model, config, weights)
        add_lora(self.network, lora, f"transformers: {model}")
        example = {"ids": torch.zeros(1, 2, dtype=torch.long), "mask": torch.ones(1, 2, dtype=torch.bool)}
        measure(self, example, f"transformers: {model} does not run on two tokens")

    def forward(self, x: dict[str, Tensor]) -> Features:
        """Encode `ids [B, N]`, int64, with `mask [B, N]`, True for tokens, False for padding."""
        mask = x["mask"]
        out = self.network(input_ids=x["ids"], attention_mask=mask.long(), output_hidden_states=True)
        pooled = out.pooler_output if self.pooling == "pooler" else pool(out.last_hidden_state, mask, self.pooling)
        return Features(pooled, list(out.hidden_states))

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Write the model's config to `folder/encoder`; see `Encoder.portable`."""
        self.config.save_pretrained(folder / "encoder")
        return {**without_lora(spec), "model": "./encoder", "weights": "random"}
