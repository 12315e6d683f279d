"""Any audio encoder of the transformers library, with the feature extractor stored next to its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from losses import Features
from modalities.encoders.base import Encoder, Preprocessing
from modalities.encoders.library import first_line, measure
from modalities.encoders.lora import Lora, add_lora, without_lora
from modalities.encoders.pretrained import read_config, read_network
from modalities.encoders.text_transformer import pool
from modalities.transformers_loader import import_transformers


class PretrainedAudio(Encoder):
    """A transformers audio encoder by Hub name or local folder: wav2vec2, HuBERT, the encoder of Whisper, or AST.

    `pooled` is the mean over the tokens inside the audio or, for AST, the pooler output. The maps are all hidden states
    `[B, N, C]`. Parameters that `pooled` does not depend on are frozen, since DDP expects gradients for all trainable
    parameters.

    Args:
        rate: Sample rate of the waveform in Hz; must be that of the model.
        model: `facebook/wav2vec2-base`, ... Its code must be part of transformers.
        weights: `pretrained`, or `random` to build the network from its config alone.
        lora: LoRA, for a student: `{rank: 8, alpha: 16, targets: [q_proj, v_proj], dropout: 0.0}`, each optional. Only
            adapters of the linear layers in `targets` (by default, of all) are trained. Requires peft.

    Raises:
        ValueError: The model cannot be found, has no feature extractor, or requires another sample rate.
    """

    reads_pictures: ClassVar[bool] = False

    def __init__(
        self,
        rate: int,
        *,
        model: str,
        weights: Literal["pretrained", "random"] = "pretrained",
        lora: Lora | None = None,
    ) -> None:
        super().__init__(Preprocessing.of(1, 1))
        config = read_config(model, part="audio_config")
        self.extractor = read_extractor(model, rate)
        self.config = config
        network: Any = read_network(model, config, weights)[0]
        # Of encoder-decoder models such as Whisper, use only the encoder.
        self.network = network.get_encoder() if getattr(config, "is_encoder_decoder", False) else network
        add_lora(self.network, lora, f"transformers: {model}")
        self.rate = rate
        silence = {"waveform": torch.zeros(1, rate), "length": torch.tensor([rate])}
        measure(self, silence, f"transformers: {model} does not run on one second of audio")

    def extract_features(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """Run the feature extractor of the model, in NumPy, on `waveform [B, T]` with `length [B]` in samples."""
        sounds = [sound[:n].cpu().numpy() for sound, n in zip(x["waveform"], x["length"].tolist(), strict=True)]
        # Whisper and AST have a fixed input length, the default of their extractor.
        padding = {"padding": True} if "attention_mask" in self.extractor.model_input_names else {}
        found = self.extractor(
            sounds, sampling_rate=self.rate, return_tensors="pt", return_attention_mask=True, **padding
        )
        return {name: value.to(x["waveform"].device) for name, value in found.items()}

    def forward(self, x: dict[str, Tensor]) -> Features:
        """Encode `waveform [B, T]` with `length [B]` in samples, or the result of `extract_features`."""
        inputs = self.extract_features(x) if "waveform" in x else dict(x)
        mask = inputs.get("attention_mask")
        if not getattr(self.extractor, "return_attention_mask", True):  # these models were trained without a mask
            inputs.pop("attention_mask", None)
        out = self.network(**inputs, output_hidden_states=True)
        if out.get("pooler_output") is not None:
            return Features(out.pooler_output, list(out.hidden_states))
        tokens = out.last_hidden_state
        return Features(pool(tokens, self._heard(tokens, mask), "mean"), list(out.hidden_states))

    def _heard(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Mask `[B, N]` of the tokens that start inside the audio, from the mask `[B, T]` of samples or frames."""
        if mask is None:
            return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        own = getattr(self.network, "_get_feature_vector_attention_mask", None)
        if own is not None:  # wav2vec2 and similar models, whose convolutions are not padded
            heard: Tensor = own(tokens.shape[1], mask)
            return heard.bool()
        share = mask.sum(1, keepdim=True) / mask.shape[1]
        return torch.arange(tokens.shape[1], device=tokens.device) < share * tokens.shape[1]

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Write the model's config and feature extractor to `folder/encoder`; see `Encoder.portable`."""
        self.config.save_pretrained(folder / "encoder")
        self.extractor.save_pretrained(folder / "encoder")
        return {**without_lora(spec), "model": "./encoder", "weights": "random"}


def read_extractor(model: str, rate: int) -> Any:
    """Load the feature extractor of the model.

    Args:
        model: Hub name or local folder.
        rate: Sample rate of the modality in Hz.

    Raises:
        ValueError: There is no feature extractor, or it requires another sample rate.
    """
    try:
        extractor = import_transformers().AutoFeatureExtractor.from_pretrained(
            model, local_files_only=Path(model).exists(), trust_remote_code=False
        )
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"transformers: {model!r} has no feature extractor for audio: preprocessor_config.json is required. "
            f"({first_line(error)})"
        ) from error
    wanted = getattr(extractor, "sampling_rate", None)
    if wanted is None:
        raise ValueError(f"transformers: {model} is not an audio model; use an audio encoder such as wav2vec2")
    if wanted != rate:
        raise ValueError(
            f"transformers: {model} requires {wanted} Hz, but the modality has {rate}; set its `rate: {wanted}`"
        )
    return extractor
