"""Every encoder of every modality as a graph: PyTorch alone and ONNX say what the network says, at any batch size."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from point_clouds import cloud, written

import modalities
from modalities.encoders.named import CIFAR, IMAGENET
from modalities.transformers_loader import import_transformers
from pipeline.data.views import collate_view
from pipeline.export.onnx import TOLERANCE, Graph, difference, quantise, trace, write_onnx
from pipeline.models.network import build_network

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

TINY: dict[str, dict[str, Any]] = {
    "cnn5": {"width": 4, "size": 16},
    "resnet": {"depth": 8, "width": 4, "size": 16},
    "log_mel_cnn": {"width": 4},
    "text_transformer": {"width": 16, "depth": 2, "heads": 2},
    "pointnet": {"width": 8, "size": 16},
    "transformers": {},
}
"""Small settings; an encoder that is not here is tested as it comes."""

ELSEWHERE = {"module", "timm", "torchvision", "open_clip"}
"""Encoders that are tested with the modules and libraries that they need, in tests/modalities."""

HALVES = ("luminance", "chroma")
DEEPER = re.compile(r"resnet(14|20|32|44|56|110|32x4|34)|wrn_(16_2|40_\d)|vgg1\d")
"""Named networks that are others of their class with more blocks or channels, of which the graph has nothing new."""
FAST = [("depth", "cnn5")]
ENCODERS = [
    pytest.param(name, encoder, marks=[] if (name, encoder) in FAST else pytest.mark.slow)
    for name, modality in modalities.MODALITIES.items()
    for encoder in sorted(modality.encoders.keys() - ELSEWHERE)
    # What networks of images do with other channels, one of them tells; the named ones are tried with those of rgb.
    if not DEEPER.fullmatch(encoder)
    if name == "rgb" or encoder == "cnn5" or (name not in HALVES and encoder not in CIFAR | IMAGENET)
]
WIDTHS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def member(modality: str, seed: int) -> bytes:
    """A small file of a modality, of another length for each seed."""
    rng = np.random.default_rng(seed)
    if modality in ("rgb", *HALVES):
        return cv2.imencode(".png", rng.integers(0, 256, (40, 30, 3), np.uint8))[1].tobytes()
    if modality == "depth":
        return cv2.imencode(".png", rng.integers(0, 4000, (40, 30)).astype(np.uint16))[1].tobytes()
    if modality == "points":
        return written(cloud(seed, 40 + 10 * seed), "bin")
    if modality == "text":
        return ("a red ball " * (seed + 1)).encode()
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    soundfile.write(file, rng.uniform(-0.5, 0.5, 4000 + 1500 * seed), 16000, format="WAV")
    return file.getvalue()


def network_and_batch(modality: str, encoder: str, folder: Path, samples: int = 5) -> tuple[Any, Any]:
    torch.manual_seed(0)
    words = {"name": modality} | ({"input": "points"} if (modality, encoder) == ("depth", "pointnet") else {})
    words |= {"count": 50, "extra": 1} if modality == "points" else {}
    spec = {"name": encoder, **TINY.get(encoder, {})}
    if encoder == "transformers":
        spec |= {"model": str(pretrained(modality, folder))}
        words |= {"input": "image"} if modality == "depth" else {}
        words |= {"length": 64} if modality == "text" else {}
    network = build_network(words, spec, ["a", "b", "c"], "student").eval()
    for name, buffer in network.named_buffers():  # those of an untrained network would hide mistakes in them
        if name.endswith("running_var"):
            buffer.uniform_(0.1, 0.5)
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return network, seen(network, [modality], range(samples))


def seen(network: Any, names: list[str], seeds: Any) -> Any:
    """A batch as evaluation makes it."""
    views = network.view if isinstance(network.view, tuple) else (network.view,)
    samples = []
    for seed in seeds:
        values = [
            view.modality.augment(view.modality.decode(member(name, seed), {}), modalities.Geometry(), view.size, None)
            for view, name in zip(views, names, strict=True)
        ]
        samples.append(tuple(values) if isinstance(network.view, tuple) else values[0])
    return collate_view(network.view, samples)


def pretrained(modality: str, folder: Path) -> Path:
    transformers = import_transformers()
    if modality == "text":
        transformers.BertModel(transformers.BertConfig(**WIDTHS, vocab_size=300)).save_pretrained(folder)
    elif modality == "audio":
        pretrained_audio("wav2vec2", folder)
    else:
        transformers.ViTModel(transformers.ViTConfig(**WIDTHS, patch_size=8, image_size=32)).save_pretrained(folder)
        transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def pretrained_audio(kind: str, folder: Path) -> None:
    t = import_transformers()
    if kind == "wav2vec2":
        convolutions = {"conv_dim": [8, 8], "conv_stride": [20, 16], "conv_kernel": [20, 16]}
        positions = {"num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 4}
        network = t.Wav2Vec2Model(t.Wav2Vec2Config(**WIDTHS, **convolutions, **positions, vocab_size=9))
        extractor = t.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    elif kind == "whisper":
        sizes = {"d_model": 16, "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        sizes |= dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
        sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
        sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32)
        network = t.WhisperModel(t.WhisperConfig(**sizes, decoder_start_token_id=1))
        extractor = t.WhisperFeatureExtractor()
    else:
        network = t.ASTModel(t.ASTConfig(**WIDTHS, max_length=128, num_mel_bins=32))
        extractor = t.ASTFeatureExtractor(num_mel_bins=32, max_length=128)
    network.save_pretrained(folder)
    extractor.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whisper", "ast"])
def test_pretrained_audio_of_other_kinds(kind: str, tmp_path: Path) -> None:
    """The graph begins behind the feature extractor, and names what that makes."""
    pretrained_audio(kind, tmp_path)
    network = build_network({"name": "audio"}, {"name": "transformers", "model": str(tmp_path)}, ["a", "b"], "student")
    batch = seen(network.eval(), ["audio"], range(3))
    graph = Graph(network, batch)
    assert {"whisper": "input_features", "ast": "input_values"}[kind] in graph.names
    write_onnx(trace(graph, batch), graph, tmp_path / "model.onnx")
    assert difference(graph, tmp_path / "model.onnx", [batch, seen(network, ["audio"], [5])]) < TOLERANCE


@pytest.mark.parametrize(("modality", "encoder"), ENCODERS)
def test_onnx_and_plain_pytorch_equal_the_network(modality: str, encoder: str, tmp_path: Path) -> None:
    network, batch = network_and_batch(modality, encoder, tmp_path / "model")
    graph = Graph(network, batch)
    program = trace(graph, batch)
    write_onnx(program, graph, tmp_path / "model.onnx")
    assert network(batch).pooled.std() > 1e-3
    others = [seen(network, [modality], seeds) for seeds in ([7], [6, 1])]  # of other sizes than the example
    assert difference(graph, tmp_path / "model.onnx", [batch, *others]) < TOLERANCE
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    for own in others:
        out = network(own)
        torch.testing.assert_close(again(*graph.tensors(own)), (out.pooled, out.logits), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_joint_network_has_the_inputs_of_both(tmp_path: Path) -> None:
    specs = [{"name": "cnn5", **TINY["cnn5"]}, {"name": "text_transformer", **TINY["text_transformer"]}]
    network = build_network([{"name": "rgb"}, {"name": "text"}], specs, ["a", "b"], "student").eval()
    batch = seen(network, ["rgb", "text"], range(4))
    graph = Graph(network, batch)
    assert graph.names == ["rgb", "text_ids", "text_mask"]
    write_onnx(trace(graph, batch), graph, tmp_path / "model.onnx")
    assert difference(graph, tmp_path / "model.onnx", [seen(network, ["rgb", "text"], [9])]) < TOLERANCE


@pytest.mark.parametrize(
    ("modality", "encoder"), [*FAST, pytest.param("text", "text_transformer", marks=pytest.mark.slow)]
)
def test_eight_bits_are_smaller_and_near(modality: str, encoder: str, tmp_path: Path) -> None:
    network, batch = network_and_batch(modality, encoder, tmp_path, samples=16)
    graph = Graph(network, batch)
    full, small = tmp_path / "model.onnx", tmp_path / "small.onnx"
    write_onnx(trace(graph, batch), graph, full)
    assert "quantisation of" in quantise(full, small, graph, [batch])
    off = difference(graph, small, [batch])
    assert 0 < off < 0.2  # not the same numbers, but near them
