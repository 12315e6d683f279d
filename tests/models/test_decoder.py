"""The decoder reads maps of any encoder and answers at the input's size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modalities.encoders import IMAGE_ENCODERS
from modalities.encoders.pretrained import PretrainedVision
from modalities.transformers_loader import import_transformers
from pipeline.models.decoder import Decoder


@pytest.mark.parametrize(
    ("name", "settings"),
    [("cnn5", {"width": 4, "size": 32}), ("resnet", {"depth": 8, "width": 4, "size": 32, "stem_stride": 2})],
)
def test_every_map_is_read(name: str, settings: dict[str, int]) -> None:
    encoder = IMAGE_ENCODERS[name](3, **settings)  # type: ignore[arg-type, call-arg]
    decoder = Decoder(encoder.map_channels, 5, 32)
    maps = encoder(torch.randn(2, 3, 32, 32)).maps
    logits = decoder(maps)
    assert logits.shape == (2, 5, 32, 32)
    logits.square().sum().backward()
    for module in (encoder, decoder):
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())


def test_tokens_lie_where_their_patches_do() -> None:
    """A class token and a register before the patches have no place."""
    torch.manual_seed(0)
    decoder = Decoder((4, 6), 3, 16).eval()
    maps = [torch.randn(2, c, 4, 4) for c in (4, 6)]
    tokens = [torch.cat([torch.randn(2, 2, m.shape[1]), m.flatten(2).mT], 1) for m in maps]
    torch.testing.assert_close(decoder(tokens), decoder(maps))


def test_a_shift_of_the_maps_shifts_the_answer() -> None:
    torch.manual_seed(0)
    decoder = Decoder((4,), 3, 32).eval()
    x = torch.randn(1, 4, 16, 16)
    there, here = decoder([x.roll(4, 3)]), decoder([x])
    torch.testing.assert_close(there[..., 12:28], here[..., 4:20], atol=1e-5, rtol=1e-5)


def test_a_vision_transformer_has_a_decoder(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    import_transformers().ViTConfig(**sizes, image_size=32, patch_size=8).save_pretrained(tmp_path)
    encoder = PretrainedVision(3, model=str(tmp_path), weights="random")
    logits = Decoder(encoder.map_channels, 3, 32)(encoder(torch.randn(2, 3, 32, 32)).maps)
    assert logits.shape == (2, 3, 32, 32)
