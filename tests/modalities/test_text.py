"""Text: captions read, drawn and tokenised; encoders that padding does not change; a student that takes all with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modalities import Geometry, Text
from modalities.testing import check_modality
from modalities.tokenizer import FIRST_BYTE, START
from modalities.transformers_loader import import_transformers
from pipeline.models.network import build_network, load_network, save_network

transformers = import_transformers()

WHOLE = Geometry()
CAPTIONS = ["a red ball", "grüße, 世界", "the ball lies on a table beside a very long row of words"]
SMALL = {"name": "text_transformer", "width": 16, "depth": 2, "heads": 2, "dropout": 0.0}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer of 40 words or so, as a hub would hold it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    known = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *sorted(set(" ".join(CAPTIONS).split()))]
    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    folder = tmp_path_factory.mktemp("words")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["bert", "clip"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    if request.param == "bert":
        transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(folder)
    else:
        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "image_size": 32, "patch_size": 16}  # fmt: skip
        text = sizes | {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def test_it_keeps_the_contract(words: Path) -> None:
    samples = ["\n".join(CAPTIONS).encode(), CAPTIONS[1].encode(), b"x" * 1000]
    check_modality(Text(), samples, specs=[SMALL])
    check_modality(Text(tokenizer=str(words)), samples, specs=[SMALL])


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "empty"), (b" \n\t\n", "empty"), (b"\xff\xfe\x00", "not UTF-8"), (b"ab\0c", "zero bytes"),
     (b"x" * 1_000_001, "at most 1000000")],
)  # fmt: skip
def test_bad_text_is_named(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Text().decode(data, {})


def test_captions_are_read_whole_and_composed() -> None:
    assert Text().decode("\ufeff one \r\n\r\ncafe\u0301\n".encode(), {}) == ["one", "caf\u00e9"]


def test_every_caption_is_drawn_and_the_first_is_for_evaluation() -> None:
    text = Text()
    first = {int(text.augment(["a", "b", "c"], WHOLE, 9, np.random.default_rng(i))[1]) - FIRST_BYTE for i in range(60)}
    assert first == set(b"abc")
    assert text.augment(["a", "b"], WHOLE, 9, None).tolist() == [START, FIRST_BYTE + ord("a"), 2]


@pytest.mark.parametrize("length", [2, 3, 7])
def test_no_more_tokens_than_asked_for(length: int, words: Path) -> None:
    for name in "bytes", str(words):
        assert len(Text(tokenizer=name, length=length).augment(CAPTIONS[2:], WHOLE, 9, None)) == length


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_padding_changes_nothing(pooling: str) -> None:
    torch.manual_seed(0)
    unpadded(Text(), SMALL | {"pooling": pooling})


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "pooler"])
def test_models_of_transformers(model: Path, words: Path, pooling: str) -> None:
    text = Text(tokenizer=str(words), length=32)
    spec = {"name": "transformers", "model": str(model), "pooling": pooling}
    unpadded(text, spec)
    check_modality(text, [c.encode() for c in CAPTIONS], specs=[spec])


def unpadded(text: Text, spec: dict[str, Any]) -> None:
    encoder = text.encoder(spec).eval()
    tokens = [text.augment([caption], WHOLE, 9, None) for caption in CAPTIONS]
    together = encoder(text.collate(tokens)).pooled
    alone = torch.cat([encoder(text.collate([own])).pooled for own in tokens])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_named(model: Path, tmp_path: Path) -> None:
    spec = {"name": "transformers", "model": str(model)}
    with pytest.raises(ValueError, match="has a vocabulary of 60 tokens, but the tokenizer has 259; set `tokenizer`"):
        Text().encoder(spec)
    with pytest.raises(ValueError, match="reads at most 16 tokens, but texts have up to 128; set `length`"):
        Text().encoder(SMALL | {"length": 16})
    with pytest.raises(ValueError, match="tokenizer: cannot read"):
        Text(tokenizer=str(tmp_path)).encoder(SMALL)
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4"):
        Text().encoder({"name": "text_transformer", "width": 10})


def test_a_student_takes_tokenizer_and_model_with_it(model: Path, words: Path, tmp_path: Path) -> None:
    import shutil

    own_words, own_model = (shutil.copytree(source, tmp_path / source.name) for source in (words, model))
    spec = {"name": "text", "tokenizer": str(own_words), "length": 32}
    network = build_network(spec, {"name": "transformers", "model": str(own_model)}, ["a", "b"], "student").eval()
    save_network(network, tmp_path / "student")
    shutil.rmtree(own_words)
    shutil.rmtree(own_model)
    moved = shutil.move(tmp_path / "student", tmp_path / "elsewhere")
    loaded = load_network(moved).eval()
    one, two = ([n.view.modality.augment([c], WHOLE, 9, None) for c in CAPTIONS] for n in (network, loaded))  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    batch = Text().collate(one)
    assert torch.equal(network(batch).logits, loaded(batch).logits)


def test_caption_is_the_first_one() -> None:
    assert Text().caption(CAPTIONS).text == "a red ball"
