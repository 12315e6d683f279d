"""CLIP and SigLIP of a few thousand weights with a tokenizer of a few words, in folders as a hub would hold them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from modalities.transformers_loader import import_transformers

SENTENCES = ["a photo of a disc", "a photo of a square", "a photo of a cross"]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def two_towers(folder: Path, kind: str = "clip") -> Path:
    """Write a `clip` or a `siglip` of 32 x 32 pixels and 16 tokens, and return its folder."""
    transformers = import_transformers()
    torch.manual_seed(0)
    text = SIZES | {
        "vocab_size": 30,
        "max_position_embeddings": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    vision = SIZES | {"image_size": 32, "patch_size": 8}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        model, processor = transformers.CLIPModel(config), transformers.CLIPImageProcessorPil
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        model, processor = transformers.SiglipModel(config), transformers.SiglipImageProcessorPil
        torch.nn.init.constant_(model.logit_scale, 4.0)
        torch.nn.init.constant_(model.logit_bias, -3.0)
    for tower in (model.text_model, model.vision_model):  # initialised so small that all sentences look alike
        for parameter in tower.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    processor(size=square if kind == "siglip" else {"shortest_edge": 32}).save_pretrained(folder)

    known = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *sorted(set(" ".join(SENTENCES).split()))]
    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder
