"""The text tower as a head: the logits that CLIP and SigLIP give themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from two_towers import SENTENCES, two_towers

from modalities.encoders.cnn5 import CNN5
from modalities.encoders.pretrained import PretrainedVision
from modalities.encoders.zero_shot import ZeroShot
from modalities.transformers_loader import import_transformers

transformers = import_transformers()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_logits_are_the_models_own(tmp_path: Path, kind: str) -> None:
    model = str(two_towers(tmp_path / kind, kind))
    encoder = PretrainedVision(3, model=model).eval()
    head = ZeroShot(encoder, model, SENTENCES)
    photos = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    tokens = transformers.AutoTokenizer.from_pretrained(model)(
        SENTENCES, padding="max_length", max_length=16, return_tensors="pt"
    )
    own = transformers.AutoModel.from_pretrained(model).eval()
    own_logits = own(
        input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=encoder.normalise(photos)
    ).logits_per_image
    torch.testing.assert_close(head(encoder(photos).pooled), own_logits, atol=1e-4, rtol=1e-5)
    assert own_logits.std(1).min() > 0.01  # the sentences are told apart


def test_what_has_no_text_tower_is_refused(tmp_path: Path) -> None:
    model = str(two_towers(tmp_path / "clip", "clip"))
    with pytest.raises(
        ValueError, match=r"requires `encoder: \{name: transformers, model: …\}` with a pretrained CLIP"
    ):
        ZeroShot(CNN5(3), model, SENTENCES)
    mean = PretrainedVision(3, model=model, pooler=False)
    with pytest.raises(ValueError, match="`pooler` must not be false"):
        ZeroShot(mean, model, SENTENCES)
    vit = tmp_path / "vit"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(vit)
    with pytest.raises(ValueError, match="vit has no text tower"):
        ZeroShot(PretrainedVision(3, model=str(vit)), str(vit), SENTENCES)
