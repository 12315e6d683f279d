"""Encoders: dims hold for any size, known parameter counts, and transformers models run as their own files say."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from losses import Features
from modalities import RGB, Depth, Geometry
from modalities.encoders import IMAGE_ENCODERS, Encoder, Preprocessing, build
from modalities.encoders.cnn5 import CNN5
from modalities.encoders.pretrained import PretrainedVision
from modalities.encoders.resnet import ResNet
from modalities.encoders.text_transformer import TextTransformer
from modalities.transformers_loader import import_transformers

transformers = import_transformers()


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def sizes(features: Features) -> tuple[int, tuple[int, ...]]:
    """The sizes that features really have."""
    channels = tuple(m.shape[1] if m.ndim == 4 else m.shape[2] for m in features.maps)
    return features.pooled.shape[1], channels


class Mean(Encoder):
    """An encoder of somebody's own."""

    def __init__(self, channels: int, *, size: int = 32) -> None:
        super().__init__(Preprocessing.of(channels, size))
        self.dim = channels

    def forward(self, x):
        return Features(self.normalise(x).mean((2, 3)))


# The contract


@pytest.mark.parametrize("cls", [CNN5, ResNet])
@pytest.mark.parametrize("channels", [2, 3])
def test_dims_hold_at_any_size_from_sixteen(cls, channels):
    encoder = cls(channels)
    for size in (16, 17, 33, 64):
        features = encoder(torch.rand(2, channels, size, size))
        assert sizes(features) == (encoder.dim, encoder.map_channels)
        assert features.logits is None


@pytest.mark.parametrize("cls", [CNN5, ResNet])
def test_every_parameter_learns(cls):
    encoder = cls(3)
    encoder(torch.rand(4, 3, 32, 32)).pooled.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_photos_are_scaled_and_normalised_by_the_encoder():
    encoder = CNN5(3, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    expected = torch.tensor([[-1, -0.6, 1], [-1, -0.2, 3], [0, 0.2, 1]])
    torch.testing.assert_close(encoder.normalise(image)[0, :, 0], expected)
    torch.testing.assert_close(encoder.normalise(image.float() / 255), encoder.normalise(image))


def test_normalisation_is_no_weight_but_moves_with_the_network():
    encoder = CNN5(3, mean=(0.5, 0.5, 0.5))
    assert not {"mean", "std"} & set(encoder.state_dict())
    assert encoder.to("meta").mean.device.type == "meta"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"mean": (0.5,)}, "mean: 1 values for 3 channels"), ({"std": (1, 0, 1)}, "greater than 0")],
)
def test_wrong_normalisation_is_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        CNN5(3, **keywords)


# The networks


def test_the_student_is_small_and_leaves_eight_by_eight_of_sixty_four():
    assert 200_000 < parameters(CNN5(2)) < 400_000
    assert [m.shape[2] for m in CNN5(2)(torch.rand(1, 2, 64, 64)).maps][-1] == 8
    encoder = CNN5(2, width=8)
    assert (encoder.dim, encoder.map_channels) == (32, (8, 16, 16, 32, 32))


def test_resnet_maps_are_its_stem_and_its_three_stages():
    maps = ResNet(3)(torch.rand(1, 3, 32, 32)).maps
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
    encoder = ResNet(3, width=4)
    assert (encoder.dim, encoder.map_channels) == (16, (4, 4, 8, 16))


def test_map_sizes_are_those_of_the_input_size_and_training_goes_on():
    encoder = ResNet(2, size=40, stem_stride=2)
    before = {name: x.clone() for name, x in encoder.named_buffers()}
    assert encoder.map_sizes() == ((20, 20), (20, 20), (10, 10), (5, 5))
    assert encoder.training
    torch.testing.assert_close(dict(encoder.named_buffers()), before, rtol=0, atol=0)
    assert CNN5(2, size=48).eval().map_sizes() == ((24, 24), (12, 12), (6, 6), (6, 6), (6, 6))


def test_maps_of_anything_but_pictures_have_no_fixed_size():
    assert TextTransformer(50, depth=2).map_sizes() == (None, None)

    class Sums(Mean):
        def forward(self, x):
            return Features(sum(x.values()))

    with pytest.raises(ValueError, match=r"Sums does not run on an image .*reads_pictures = False"):
        Sums(3).map_sizes()


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_stem_shrinks_without_skipping_pixels(stride):
    encoder = ResNet(3, depth=8, stem_stride=stride)
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    stem = encoder.stem(x)
    assert stem.shape[2:] == (64 // stride, 64 // stride)
    stem.square().sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(("depth", "nearest"), [(18, "14 and 20"), (21, "20 and 26"), (4, "8 and 14")])
def test_a_depth_between_names_the_nearest(depth, nearest):
    with pytest.raises(ValueError, match=f"nearest depths are {nearest}"):
        ResNet(3, depth=depth)


# By name


@pytest.mark.parametrize("cls", IMAGE_ENCODERS.values())
def test_annotations_can_be_read_by_a_validator(cls):
    hints = get_type_hints(cls.__init__, include_extras=True)
    for bad in (15, "64", 0.5):
        with pytest.raises(ValidationError):
            TypeAdapter(hints["size"], config={"strict": True}).validate_python(bad)
    assert TypeAdapter(hints["size"]).validate_python(16) == 16


def test_build_passes_keywords_and_the_modalitys_normalisation():
    encoder = build(IMAGE_ENCODERS, {"name": "resnet", "depth": 8, "mean": None}, 2, mean=(0.5, 0.1), std=(2.0, 3.0))
    assert encoder.map_channels == ResNet(2, depth=8).map_channels
    assert (encoder.preprocessing.mean, encoder.preprocessing.std) == ((0.5, 0.1), (2.0, 3.0))


def test_an_encoder_of_ones_own_is_named_by_its_module():
    encoder = build(IMAGE_ENCODERS, {"name": f"{__name__}:Mean", "size": 20}, 3, mean=(0.1,) * 3)
    assert isinstance(encoder, Mean)
    assert encoder.preprocessing.size == 20


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "the name is missing.*cnn5"),
        ({"name": "cnn"}, "did you mean 'cnn5'.*cnn5, .*resnet, .*resnet8x4, .*transformers"),
        ({"name": "cnn5", "widht": 3}, "did you mean 'width'"),
        ({"name": "cnn5", "channels": 3}, "unknown setting 'channels'; there are: .*width"),
        ({"name": "no_such_package.here:Net"}, "cannot import no_such_package.here"),
        ({"name": f"{__name__}:Nothing"}, "has no 'Nothing'"),
        ({"name": f"{__name__}:parameters"}, "not a subclass of modalities.encoders.base.Encoder"),
    ],
)
def test_names_and_settings_that_are_none_are_refused_in_words(spec, message):
    with pytest.raises(ValueError, match=message):
        RGB().encoder(spec)


def test_teacher_and_student_of_one_modality_may_differ_in_size():
    photo = (torch.rand(90, 120, 3) * 255).byte().numpy()
    for spec in ({"name": "cnn5", "size": 64}, {"name": "resnet", "depth": 8, "size": 32}):
        encoder = RGB().encoder(spec)
        view = RGB().augment(photo, Geometry(), encoder.preprocessing.size, None)
        assert view.shape[1] == spec["size"]
        assert encoder(view[None]).pooled.shape == (1, encoder.dim)


def test_importing_modalities_is_light():
    code = "import sys, modalities; print(sorted({'transformers', 'open3d', 'pipeline'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_ordinary_encoder_is_portable_as_it_is(tmp_path):
    assert CNN5(3).portable({"name": "cnn5", "width": 32}, tmp_path) == {"name": "cnn5", "width": 32}


# transformers

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Tiny networks with random weights, as `save_pretrained` writes them."""
    t, folder = transformers, tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    square = {"height": 32, "width": 32}
    resnet = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    dino = {k: v for k, v in VIT.items() if k != "intermediate_size"}
    for name, network, processor in [
        (
            "resnet",
            t.ResNetForImageClassification(resnet),
            t.ConvNextImageProcessorPil(size={"shortest_edge": 48}, image_mean=[0.1, 0.2, 0.3], image_std=[1, 2, 4]),
        ),
        ("vit", t.ViTModel(t.ViTConfig(**VIT, image_size=32)), t.ViTImageProcessorPil(size=square)),
        (
            "vit-classifier",
            t.ViTForImageClassification(t.ViTConfig(**VIT, image_size=32)),
            t.ViTImageProcessorPil(size=square),
        ),
        (
            "convnext",
            t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1])),
            t.ConvNextImageProcessorPil(size={"shortest_edge": 64}),
        ),
        (
            "swin",
            t.SwinModel(t.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[2, 2], image_size=32, window_size=4)),
            t.ViTImageProcessorPil(size=square),
        ),
        (
            "dinov2",
            t.Dinov2Model(t.Dinov2Config(**dino, image_size=32)),
            t.BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=square),
        ),
        (
            "clip",
            t.CLIPModel(t.CLIPConfig(vision_config={**VIT, "image_size": 32}, text_config={**text, "vocab_size": 50})),
            t.CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=square),
        ),
        ("bert", t.BertModel(t.BertConfig(**text, vocab_size=50)), None),
    ]:
        network.save_pretrained(folder / name)
        if processor:
            processor.save_pretrained(folder / name)
    return folder


def edit(models: Path, name: str, copy: Path, file: str, **changes) -> str:
    """A copy of a model with changes in one of its json files."""
    shutil.copytree(models / name, copy)
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return str(copy)


@pytest.mark.parametrize(
    ("name", "size", "maps"),
    [
        ("resnet", 48, (8, 8, 16)),
        ("vit", 32, (16, 16, 16)),
        ("convnext", 64, (8, 8, 16, 16, 24)),
        ("swin", 32, (8, 16, 16)),
        ("dinov2", 32, (16, 16, 16)),
        ("clip", 32, (16, 16, 16)),
    ],
)
@pytest.mark.parametrize("resized", [None, 64])
@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_vision_models_run_with_the_dims_they_state(models, name, size, maps, resized, weights):
    encoder = PretrainedVision(3, model=str(models / name), size=resized, weights=weights)
    size = resized or size
    assert encoder.preprocessing.size == size
    features = encoder(torch.randint(0, 255, (2, 3, size, size), dtype=torch.uint8))
    assert sizes(features) == (encoder.dim, encoder.map_channels) == (maps[-1], maps)
    assert encoder.map_sizes() == tuple(tuple(m.shape[2:] if m.ndim == 4 else m.shape[1:2]) for m in features.maps)
    # Ready for DDP: what is trainable gets a gradient, and that is nearly all.
    features.pooled.square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in encoder.parameters())
    frozen = sum(p.numel() for p in encoder.parameters() if not p.requires_grad)
    assert frozen <= 0.02 * parameters(encoder)


@pytest.mark.parametrize("name", ["resnet", "vit", "clip"])
def test_features_are_the_models_own_on_its_own_preprocessing(models, name):
    encoder = PretrainedVision(3, model=str(models / name)).eval()
    size = encoder.preprocessing.size
    image = torch.randint(0, 255, (2, 3, size, size), dtype=torch.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(models / name)
    pixels = torch.stack([torch.as_tensor(processor(i, do_resize=False).pixel_values[0]) for i in image])
    cls = transformers.CLIPVisionModel if name == "clip" else transformers.AutoModel
    expected = cls.from_pretrained(models / name).eval()(pixels).pooler_output.flatten(1)
    torch.testing.assert_close(encoder(image).pooled, expected, atol=1e-5, rtol=1e-5)


def test_swin_maps_are_maps_and_vit_maps_are_tokens(models):
    swin, vit = (PretrainedVision(3, model=str(models / name)) for name in ("swin", "vit"))
    x = torch.rand(1, 3, 32, 32)
    assert swin(x).maps[0].shape == (1, 8, 8, 8)
    assert vit(x).maps[0].shape == (1, 17, 16)


def test_a_pooler_without_trained_weights_is_not_used(models, caplog):
    with caplog.at_level(logging.WARNING):
        encoder = PretrainedVision(3, model=str(models / "vit-classifier")).eval()
    assert "no weights for its pooler" in caplog.text
    x = torch.rand(2, 3, 32, 32)
    expected = encoder.network(pixel_values=encoder.normalise(x)).last_hidden_state.mean(1)
    torch.testing.assert_close(encoder(x).pooled, expected)
    trained = PretrainedVision(3, model=str(models / "vit"), pooler=False).eval()
    expected = trained.network(pixel_values=trained.normalise(x)).last_hidden_state.mean(1)
    torch.testing.assert_close(trained(x).pooled, expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}, 32),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": False}, 40),
        ({"size": 24}, 24),
        ({"size": {"height": 40, "width": 40}}, 40),
    ],
)
def test_the_size_is_what_the_processor_ends_with(models, tmp_path, changes, expected):
    model = edit(models, "resnet", tmp_path / "m", "preprocessor_config.json", **changes)
    assert PretrainedVision(3, model=model).preprocessing.size == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": [0.3, 0.2, 0.9]},
    ],
)
def test_scaling_and_normalising_are_the_processors_own(models, tmp_path, changes):
    model = edit(models, "vit", tmp_path / "m", "preprocessor_config.json", **changes)
    encoder = PretrainedVision(3, model=model)
    image = torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8)
    expected = transformers.AutoImageProcessor.from_pretrained(model)(image, do_resize=False).pixel_values[0]
    torch.testing.assert_close(
        encoder.normalise(image[None])[0], torch.as_tensor(expected).float(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"height": 32, "width": 64}}, "do not define a single input size; set `size`"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is not supported"),
    ],
)
def test_preprocessing_that_cannot_be_followed_is_refused(models, tmp_path, changes, message):
    model = edit(models, "vit", tmp_path / "m", "preprocessor_config.json", **changes)
    with pytest.raises(ValueError, match=message):
        PretrainedVision(3, model=model)


def test_without_a_processor_the_config_gives_the_size_and_a_warning_says_so(models, tmp_path, caplog):
    shutil.copytree(models / "vit", tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        encoder = PretrainedVision(3, model=str(tmp_path / "m"))
    assert encoder.preprocessing == Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
    assert "no preprocessor_config.json" in caplog.text


@pytest.mark.parametrize("name", ["vit-classifier", "resnet", "clip"])
def test_a_network_rebuilt_from_its_own_folder_gives_the_same_features(models, tmp_path, name):
    spec = {"name": "transformers", "model": str(models / name), "size": 48}
    first = RGB().encoder(spec).eval()
    portable = json.loads(json.dumps(first.portable(spec, tmp_path)))
    assert portable["model"] == "./encoder"
    again = RGB().encoder(portable | {"model": str(tmp_path / "encoder")}).eval()
    again.load_state_dict(first.state_dict())
    assert again.preprocessing == first.preprocessing
    x = torch.randint(0, 255, (2, 3, 48, 48), dtype=torch.uint8)
    assert torch.equal(first(x).pooled, again(x).pooled)


def test_depth_adapts_the_first_convolution_and_loads_again(models, tmp_path):
    spec = {"name": "transformers", "model": str(models / "resnet")}
    rgb, depth = RGB().encoder(spec), Depth().encoder(spec).eval()
    assert (depth.preprocessing.mean, depth.preprocessing.std) == ((0.0, 0.0), (1.0, 1.0))
    wide, narrow = rgb.network.state_dict(), depth.network.state_dict()
    changed = [name for name in wide if wide[name].shape != narrow[name].shape]
    assert len(changed) == 1
    torch.testing.assert_close(narrow[changed[0]], wide[changed[0]][:, :2] * 1.5)
    again = Depth().encoder(depth.portable(spec, tmp_path) | {"model": str(tmp_path / "encoder")}).eval()
    again.load_state_dict(depth.state_dict())
    x = torch.rand(1, 2, 64, 64)
    torch.testing.assert_close(again(x).pooled, depth(x).pooled, rtol=0, atol=0)


def test_models_that_cannot_be_read_are_refused_with_the_cure(models, tmp_path):
    (tmp_path / "empty").mkdir()
    for model, cure in [(str(tmp_path / "empty"), "config.json"), (str(tmp_path / "none"), "check the name")]:
        with pytest.raises(ValueError, match=cure) as caught:
            PretrainedVision(3, model=model)
        assert model in str(caught.value)
    with pytest.raises(ValueError, match="bert does not run on an image of 32 x 32"):
        PretrainedVision(3, model=str(models / "bert"), size=32)


def test_weights_are_whole_and_safetensors_or_refused(models, tmp_path):
    shutil.copytree(models / "vit", tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    weights = load_file(path)
    gone = next(key for key in weights if "layernorm_after" in key or "norm2" in key)
    save_file({k: v for k, v in weights.items() if k != gone}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 tensors have no weights"):
        PretrainedVision(3, model=str(tmp_path / "m"))
    path.unlink()
    torch.save(weights, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.safetensors is required"):
        PretrainedVision(3, model=str(tmp_path / "m"))
    assert PretrainedVision(3, model=str(tmp_path / "m"), weights="random").dim == 16


def test_preprocessing_fills_in_zero_and_one():
    assert Preprocessing.of(2, 32) == Preprocessing(32, (0.0, 0.0), (1.0, 1.0))
    assert replace(Preprocessing.of(1, 32), size=16).size == 16


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_series_are_normalised_by_channel(batch: int) -> None:
    """A batch as large as the number of channels must not be taken for the channels."""
    mean, std = (1.0, 2.0, 3.0), (1.0, 2.0, 4.0)
    series = torch.randn(batch, 3, 5)
    found = CNN5(3, mean=mean, std=std).normalise(series)
    columns = [(series[:, i] - mean[i]) / std[i] for i in range(3)]
    torch.testing.assert_close(found, torch.stack(columns, 1), rtol=0, atol=0)
