"""Property: gradients, outputs and running statistics are those without; less is kept between the passes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.models.network import Joint, Network, build_network
from pipeline.train import train
from pipeline.train.activation_checkpointing import checkpoint_gradients

IMAGES = torch.rand(4, 3, 32, 32)
TEXTS = {"ids": torch.randint(0, 200, (4, 12)), "mask": torch.ones(4, 12, dtype=torch.bool)}
CASES: dict[str, tuple[Any, Any, Any]] = {
    "cnn5": ("rgb", {"name": "cnn5", "width": 4, "size": 32}, IMAGES),
    "resnet": ("rgb", {"name": "resnet", "depth": 8, "width": 4, "size": 32}, IMAGES),
    "text": ("text", {"name": "text_transformer", "width": 16, "length": 128, "depth": 2, "dropout": 0.3}, TEXTS),
}


def build(case: str) -> tuple[Network, Any]:
    modality, encoder, x = CASES[case]
    torch.manual_seed(0)
    network = build_network({"name": modality}, encoder, ["a", "b"], "student")
    assert isinstance(network, Network)
    return network, x


def outcome(network: Network | Joint, x: Any) -> tuple[list[Tensor], int]:
    """Output, gradients and buffers of a step, and the bytes kept for its backward pass."""
    kept = 0

    def pack(value: Tensor) -> Tensor:
        nonlocal kept
        kept += value.nbytes
        return value

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        features = network(x)
    (features.pooled.square().sum() + features.logits.sum() + features.maps[0].sum()).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return [features.pooled, *gradients, *(b.clone() for b in network.buffers())], kept


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_statistics_are_those_without(case: str) -> None:
    network, x = build(case)
    again = copy.deepcopy(network)
    checkpoint_gradients(again)
    (expected, all_kept), (found, kept) = outcome(network, x), outcome(again, x)
    assert len(found) == len(expected)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
    assert kept < 0.7 * all_kept
    assert again.state_dict().keys() == network.state_dict().keys()


def test_a_transformers_model_does_it_by_its_own_method(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.ViTConfig(**sizes, image_size=32, patch_size=16).save_pretrained(tmp_path)
    encoder = {"name": "transformers", "model": str(tmp_path), "weights": "random"}
    network = build_network({"name": "rgb"}, encoder, ["a", "b"], "student")
    again = copy.deepcopy(network)
    checkpoint_gradients(again)
    (expected, all_kept), (found, kept) = outcome(network, IMAGES), outcome(again, IMAGES)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)
    assert kept < 0.7 * all_kept


def test_an_encoder_without_blocks_is_refused(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]).save_pretrained(tmp_path)
    encoder = {"name": "transformers", "model": str(tmp_path), "weights": "random", "size": 32}
    with pytest.raises(UserError, match=r"train\.gradient_checkpointing: PretrainedVision has no blocks"):
        checkpoint_gradients(build_network({"name": "rgb"}, encoder, None, "student"))


@pytest.mark.parametrize("parts", ["null", "4"])
def test_a_run_ends_with_the_same_weights(make_config: Any, parts: str) -> None:
    runs = [
        train(configs.load(make_config(name), [f"train.gradient_checkpointing={name}", f"train.micro_batch={parts}"]))
        for name in ("false", "true")
    ]
    one, two = ((run / "student" / "model.safetensors").read_bytes() for run in runs)
    assert one == two
