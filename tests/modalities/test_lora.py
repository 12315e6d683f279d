"""LoRA in encoders of transformers: the features at the start, what is trained, and the merged weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import modalities
from losses import Features
from modalities.encoders.base import Encoder
from modalities.encoders.lora import merged_state, plain_names
from modalities.transformers_loader import import_transformers

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
INPUTS: dict[str, Any] = {
    "rgb": torch.rand(2, 3, 32, 32),
    "text": {"ids": torch.randint(9, (2, 5)), "mask": torch.ones(2, 5, dtype=torch.bool)},
    "audio": {"waveform": torch.rand(2, 4000) - 0.5, "length": torch.tensor([4000, 3000])},
}
TARGETS = {"rgb": ["q_proj", "v_proj"], "text": ["query", "layer.1.attention.self.value"], "audio": ["v_proj"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    t, folder = import_transformers(), tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    t.ViTModel(t.ViTConfig(**SIZES, patch_size=8, image_size=32)).save_pretrained(folder / "rgb")
    t.BertModel(t.BertConfig(**SIZES, vocab_size=300)).save_pretrained(folder / "text")
    convolutions = {"conv_dim": [8, 8], "conv_stride": [20, 16], "conv_kernel": [20, 16]}
    positions = {"num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 4}
    t.Wav2Vec2Model(t.Wav2Vec2Config(**SIZES, **convolutions, **positions, vocab_size=9)).save_pretrained(
        folder / "audio"
    )
    t.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder / "audio")
    resnet = t.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    t.ResNetModel(resnet).save_pretrained(folder / "resnet")
    return folder


def build(models: Path, modality: str, model: str | None = None, **settings: Any) -> Encoder:
    spec = {"name": "transformers", "model": str(models / (model or modality)), **settings}
    return modalities.get(modality)().encoder(spec).eval()


def outputs(features: Features) -> list[Tensor]:
    return [features.pooled, *features.maps]


@pytest.mark.parametrize("modality", INPUTS)
@torch.no_grad()
def test_it_starts_from_the_model_and_merges_into_it(models: Path, modality: str) -> None:
    x, base = INPUTS[modality], build(models, modality)
    for settings in ({}, {"rank": 2, "alpha": 5.0, "targets": TARGETS[modality], "dropout": 0.5}):
        encoder = build(models, modality, lora=settings)
        for own, known in zip(outputs(encoder(x)), outputs(base(x)), strict=True):
            torch.testing.assert_close(own, known, rtol=0, atol=1e-6)
        for name, weight in encoder.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2)
        assert not torch.allclose(encoder(x).pooled, base(x).pooled, atol=1e-2)
        merged = build(models, modality)
        merged.load_state_dict(merged_state(encoder))
        for own, known in zip(outputs(encoder(x)), outputs(merged(x)), strict=True):
            torch.testing.assert_close(own, known, rtol=0, atol=1e-5)


@pytest.mark.parametrize("modality", INPUTS)
def test_only_the_updates_of_the_targets_are_trained(models: Path, modality: str) -> None:
    encoder = build(models, modality, lora={"rank": 2, "targets": TARGETS[modality]})
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    layers = {name.rpartition(".lora_")[0] for name in trained}
    assert len(trained) == 2 * len(layers)
    assert len(layers) == {"rgb": 4, "text": 3, "audio": 2}[modality]
    assert sum(p.numel() for p in trained.values()) == len(layers) * 2 * (16 + 16)
    assert all(f".{layer}".endswith(tuple(f".{target}" for target in TARGETS[modality])) for layer in layers)


def test_by_default_all_linear_layers_that_are_used_have_updates(models: Path) -> None:
    trained = {name for name, p in build(models, "text", lora={}).named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 6  # the pooler is not used
    assert {name.split(".")[-2] for name in trained} == {"default"}


@pytest.mark.parametrize(
    ("model", "target", "message"),
    [
        (
            "rgb",
            "query",
            "no linear layer query; its linear layers are dense, fc1, fc2, k_proj, o_proj, q_proj, ",
        ),
        ("rgb", "layernorm", "no linear layer layernorm"),
        ("rgb", "proj", "no linear layer proj"),
        ("resnet", None, "no linear layer at all; its linear layers are none"),
    ],
)
def test_unknown_targets_are_refused_with_the_names_there_are(
    models: Path, model: str, target: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(models, "rgb", model, lora={"targets": [target]} if target else {}, size=32)


def test_a_missing_package_is_named_with_its_extra(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"requires peft: pip install 'wcord\[lora\]'"):
        build(models, "rgb", lora={})


def test_layers_of_other_networks_keep_their_names() -> None:
    """DLA of timm has a `base_layer`, which is none of LoRA."""
    network = torch.nn.ModuleDict({"base_layer": torch.nn.Linear(2, 3), "lora_like": torch.nn.Linear(3, 2)})
    outer = torch.nn.ModuleDict({"encoder": network})
    assert plain_names(outer) == {name: name for name in outer.state_dict()}
    assert merged_state(outer).keys() == outer.state_dict().keys()
