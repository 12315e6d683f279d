"""Learning rates by part and by layer, and what a frozen encoder leaves to train."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from safetensors.torch import load_file
from torch import nn

from modalities.encoders.base import Encoder, Preprocessing
from modalities.encoders.cnn5 import CNN5
from modalities.transformers_loader import import_transformers
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.models.build import build_model
from pipeline.train import train
from pipeline.train.layers import layer_numbers
from pipeline.train.optimizer import build_optimizer

FREEZE = ("student.encoder.freeze=true",)


def factors(path: Path, *overrides: str) -> dict[str, float]:
    """The factor of the learning rate of each parameter that is trained."""
    config = configs.load(path, overrides)
    model = build_model(config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, config).param_groups
    return {names[parameter]: group["factor"] for group in groups for parameter in group["params"]}


def test_parts_and_layers_have_their_learning_rates(make_config: Any) -> None:
    rates = factors(
        make_config(),
        "train.layer_decay=0.5",
        "train.learning_rate_factors.encoder=0.1",
        "train.learning_rate_factors.head=2",
    )
    assert rates["student.head.weight"] == rates["student.head.bias"] == 2
    for layer in range(5):  # the last of the five layers has one step of decay
        assert rates[f"student.encoder.layers.{layer}.0.weight"] == pytest.approx(0.1 * 0.5 ** (5 - layer))
        assert rates[f"student.encoder.layers.{layer}.1.bias"] == pytest.approx(0.1 * 0.5 ** (5 - layer))


def test_groups_without_factors_are_those_of_earlier_checkpoints(make_config: Any) -> None:
    config = configs.load(make_config())
    groups = build_optimizer(build_model(config), config).param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert {group["factor"] for group in groups} == {1.0}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", partial(torch.optim.AdamW, fused=True)), ("sgd", partial(torch.optim.SGD, momentum=0.9))],
)
def test_steps_are_those_of_torch(name: str, kind: Any, make_config: Any) -> None:
    config = configs.load(make_config(), [f"train.optimizer={name}"])
    models = [build_model(config) for _ in range(2)]
    own = build_optimizer(models[0], config)
    grouped = build_optimizer(models[1], config).param_groups
    other = kind([{key: group[key] for key in ("params", "weight_decay")} for group in grouped], lr=own.defaults["lr"])
    for _ in range(3):
        for model, optimizer in zip(models, (own, other), strict=True):
            sum((p**3).sum() for p in model.parameters() if p.requires_grad).backward()
            optimizer.step()
            optimizer.zero_grad()
    one, two = (model.state_dict() for model in models)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], value) for key, value in build_model(config).state_dict().items())
    assert own.state_dict()["state"].keys() == other.state_dict()["state"].keys()


class Wrapped(Encoder):
    """A network of a library inside an encoder."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(Preprocessing.of(3, 32))
        self.network = network


def residual(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(nn.TransformerEncoderLayer(width, 1, width) for _ in range(blocks)))


class Stages(nn.Module):
    """Like a ResNet of torchvision: a stem, and stages that are sequences of blocks of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer1, self.layer2 = nn.Conv2d(3, 4, 3), residual(4, 2), residual(16, 3)


class Blocks(nn.Module):
    """Like a ViT of timm: an embedding, a sequence of blocks, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks, self.norm = nn.Conv2d(3, 8, 4), residual(8, 3), nn.LayerNorm(8)


@pytest.mark.parametrize(
    ("network", "layers", "expected"),
    [
        (Stages(), 3, {"stem.weight": 1, "layer1.1.linear1.weight": 2, "layer2.0.linear1.weight": 3}),
        (Blocks(), 3, {"embed.weight": 0, "blocks.0.linear1.weight": 1, "blocks.2.norm1.bias": 3, "norm.weight": 4}),
    ],
    ids=["stages", "blocks"],
)
def test_layers_are_found_in_networks_of_other_libraries(
    network: nn.Module, layers: int, expected: dict[str, int]
) -> None:
    numbers, last = layer_numbers(Wrapped(network))
    assert last == layers
    assert {name: numbers[network.get_parameter(name)] for name in expected} == expected
    assert set(numbers) == set(network.parameters())


def test_a_transformers_model_has_its_blocks_as_layers() -> None:
    transformers = import_transformers()
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.ViTModel(transformers.ViTConfig(**sizes))
    numbers, last = layer_numbers(Wrapped(model))
    by_name = {name: numbers[parameter] for name, parameter in model.named_parameters()}
    assert last == 3
    assert by_name["embeddings.cls_token"] == 0
    assert by_name["layernorm.weight"] == 4
    assert sorted(set(by_name.values())) == [0, 1, 2, 3, 4]


def weights(run: Path, kind: str) -> dict[str, torch.Tensor]:
    state = load_file(run / "student" / "model.safetensors")
    return {name: value for name, value in state.items() if name.startswith(kind)}


@pytest.mark.parametrize("more", [(), ("train.micro_batch=4",)], ids=["whole", "micro-batches"])
def test_a_head_is_trained_on_a_frozen_encoder(make_config: Any, more: tuple[str, ...]) -> None:
    path = make_config()
    config = configs.load(path, [*FREEZE, *more])
    before = {name: value.clone() for name, value in build_model(config).student.state_dict().items()}
    run = train(config)
    for name, value in weights(run, "encoder.").items():  # with the statistics of batch normalisation
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)
    assert not torch.equal(weights(run, "head.")["head.weight"], before["head.weight"])
    (part,) = json.loads((run / "learning_rates.json").read_text())
    assert part == {"part": "head", "learning_rate": 3e-3, "parameters": 16 * 3 + 3}
    assert "freeze" not in (run / "student" / "network.json").read_text()


def test_a_head_on_a_frozen_encoder_is_a_teacher_with_logits(make_config: Any) -> None:
    teacher = train(configs.load(make_config("teacher"), ["student.modality=rgb", *FREEZE]))
    student = train(configs.load(make_config("student", f"teacher: {{run: {teacher}}}", "  kd: {}")))
    assert (student / "student" / "network.json").exists()


def test_parts_of_an_encoder_are_frozen_by_path(make_config: Any) -> None:
    path = make_config()
    model = build_model(configs.load(path, ["student.encoder.freeze=[layers.0, layers.1]"]))
    trained = {name for name, parameter in model.student.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if name.startswith(("encoder.layers.0", "encoder.layers.1"))} == set()
    assert "encoder.layers.2.0.weight" in trained
    assert isinstance(model.student.encoder, CNN5)
    assert [layer.training for layer in model.train().student.encoder.layers] == [False, False, True, True, True]


def test_what_cannot_be_frozen_is_refused(make_config: Any) -> None:
    path = make_config()
    with pytest.raises(
        UserError, match=r"student.encoder.freeze: the encoder has no module 'layer.0', did you mean layers.0\?"
    ):
        build_model(configs.load(path, ["student.encoder.freeze=[layer.0]"]))
    teacher = train(configs.load(path, ["student.modality=rgb", "train.steps=2"]))
    config = make_config("student", f"teacher: {{run: {teacher}}}", "  info_nce: {}")
    with pytest.raises(UserError, match="no trainable parameters"):
        build_model(configs.load(config, FREEZE))
    for wrong in ("0", "-3", "1.5", "2 epochs"):
        with pytest.raises(UserError, match="freeze: must be"):
            configs.load(path, [f"student.encoder.freeze={wrong}"])
    bare = make_config("bare", f"teacher: {{run: {teacher}}}", "  rkd: {}")
    with pytest.raises(UserError, match="nothing to train while it is frozen"):
        build_model(configs.load(bare, ["student.encoder.freeze=3"]))


def test_a_frozen_encoder_resumes_exactly(make_config: Any, tmp_path: Path) -> None:
    settings = [*FREEZE, "train.layer_decay=0.5"]
    path = make_config()
    whole = train(configs.load(path, [*settings, f"run={tmp_path / 'whole'}"]))
    part = configs.load(path, settings)
    train(part)
    for name in ("step_00000012",):  # go back to step 10
        for file in (tmp_path / "run" / "checkpoints" / name).iterdir():
            file.unlink()
        (tmp_path / "run" / "checkpoints" / name).rmdir()
    resumed = train(part, resume=True)
    for name, value in weights(whole, "").items():
        assert torch.equal(value, weights(resumed, "")[name]), name
    with pytest.raises(UserError, match="layer_decay"):
        train(configs.load(path, FREEZE), resume=True)


THAW = ("student.encoder.freeze=7", "train.checkpoint_every=1", "train.keep_checkpoints=12")


def checkpoint(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def assert_thaws(run: Path, before: dict[str, torch.Tensor]) -> None:
    """The encoder, with the statistics of batch normalisation, is what it was until step 7, and is trained after it."""
    at_seven, at_eight = checkpoint(run, 7), checkpoint(run, 8)
    inside = [name for name in before if name.startswith("student.encoder.")]
    assert any(name.endswith("running_var") for name in inside)
    assert [name for name in inside if not torch.equal(at_seven[name], before[name])] == []
    assert [name for name in inside if torch.equal(at_eight[name], before[name])] == []
    assert not torch.equal(checkpoint(run, 1)["student.head.weight"], before["student.head.weight"])


@pytest.mark.parametrize(
    "more",
    [(), ("train.micro_batch=4",), ("train.accumulate=2", "train.optimizer=sgd")],
    ids=["whole", "micro-batches", "accumulated"],
)
def test_an_encoder_is_frozen_for_the_first_steps(make_config: Any, more: tuple[str, ...]) -> None:
    config = configs.load(make_config(), [*THAW, *more])
    before = {name: value.clone() for name, value in build_model(config).trainable_state().items()}
    run = train(config)
    assert_thaws(run, before)
    whole = checkpoint(run, 12)
    for last in (4, 7, 9):  # before the encoder is trained, just before, and after
        for folder in sorted((run / "checkpoints").iterdir())[last:]:
            shutil.rmtree(folder)
        train(config, resume=True)
        assert [name for name, value in checkpoint(run, 12).items() if not torch.equal(value, whole[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "more"),
    [(None, ()), (None, ("train.micro_batch=4",)), ("fsdp_on_cpu.py", ())],
    ids=["parallel", "micro-batches", "sharded"],
)
def test_two_processes_freeze_an_encoder_for_the_first_steps(
    make_config: Any, tmp_path: Path, program: str | None, more: tuple[str, ...]
) -> None:
    path = make_config()
    before = {name: value.clone() for name, value in build_model(configs.load(path, THAW)).trainable_state().items()}
    own = Path(__file__).with_name(program) if program else None
    done = launch([*([] if own else ["train"]), str(path), *THAW, *more], own)
    assert done.returncode == 0, done.stderr
    assert_thaws(tmp_path / "run", before)


@pytest.mark.slow
def test_two_processes_train_a_head_on_a_frozen_encoder(make_config: Any, tmp_path: Path) -> None:
    path = make_config()
    done = launch(["train", str(path), *FREEZE])
    assert done.returncode == 0, done.stderr
    program = Path(__file__).with_name("fsdp_on_cpu.py")
    sharded = launch([str(path), *FREEZE, f"run={tmp_path / 'fsdp'}"], program)
    assert sharded.returncode == 0, sharded.stderr
    for name, value in weights(tmp_path / "run", "").items():
        torch.testing.assert_close(weights(tmp_path / "fsdp", "")[name], value, rtol=1e-4, atol=1e-5, msg=name)
