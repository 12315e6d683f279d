"""Students with LoRA: what a run changes, exact resuming, and the saved student, which is an ordinary model."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from safetensors.torch import load_file

import wcord
from modalities.transformers_loader import import_transformers
from pipeline import config as configs
from pipeline.common.errors import UserError
from pipeline.models.build import build_model
from pipeline.models.network import load_network
from pipeline.train import train

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    t, folder = import_transformers(), tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    t.ViTModel(t.ViTConfig(**SIZES, patch_size=8, image_size=16)).save_pretrained(folder)
    return folder


def lora(vit: Path, settings: str = "{rank: 2, targets: [q_proj, v_proj], dropout: 0.1}") -> list[str]:
    return [f"student.encoder={{name: transformers, model: {vit}, size: 16, lora: {settings}}}"]


def checkpoint(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def test_a_run_trains_the_updates_and_resumes_exactly(make_config: Any, vit: Path) -> None:
    config = configs.load(make_config(), [*lora(vit), "train.callbacks=[ema]"])
    before = {name: value.clone() for name, value in build_model(config).trainable_state().items()}
    run = train(config)
    whole, student = checkpoint(run, 12), (run / "student" / "model.safetensors").read_bytes()
    changed = {name for name, value in whole.items() if not torch.equal(value, before[name])}
    updates = {name for name in whole if ".lora_" in name}
    assert changed == updates | {"student.head.weight", "student.head.bias"}
    encoder, head = json.loads((run / "learning_rates.json").read_text())
    assert (encoder["parameters"], head["parameters"]) == (2 * 2 * 2 * (2 * 16), 16 * 3 + 3)
    shutil.rmtree(run / "checkpoints" / "step_00000012")
    train(config, resume=True)
    assert [name for name, value in checkpoint(run, 12).items() if not torch.equal(value, whole[name])] == []
    assert (run / "student" / "model.safetensors").read_bytes() == student


def test_the_saved_student_is_an_ordinary_model(
    make_config: Any, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configs.load(make_config(), [*lora(vit), "train.learning_rate=0.1"])
    run = train(config)
    trained = build_model(config)
    trained.load_trainable_state(checkpoint(run, 12))
    monkeypatch.setitem(sys.modules, "peft", None)
    saved: Any = load_network(run / "student")
    assert "lora" not in (run / "student" / "network.json").read_text()
    assert not [name for name in saved.state_dict() if "lora" in name or "base_layer" in name]
    x = torch.rand(3, saved.encoder.mean.shape[1], 16, 16)
    with torch.no_grad():
        own, known = saved.eval()(x), trained.student.eval()(x)
    torch.testing.assert_close(own.pooled, known.pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(own.logits, known.logits, rtol=0, atol=1e-5)
    assert wcord.load(run / "student").classes == saved.classes
    # The encoder of the run starts a student with LoRA.
    again = configs.load(make_config("again"), [*lora(vit), f"student.init_from={run}"])
    monkeypatch.undo()
    student = build_model(again).student.eval()
    with torch.no_grad():
        torch.testing.assert_close(student(x).pooled, own.pooled, rtol=0, atol=1e-6)


def test_settings_are_checked(make_config: Any, vit: Path) -> None:
    path = make_config()
    for settings in ("{rank: 0}", "{ranks: 2}", "{dropout: 1.0}", "{targets: []}"):
        with pytest.raises(UserError, match=r"student.encoder.lora"):
            configs.load(path, lora(vit, settings))
    with pytest.raises(UserError, match=r"student: lora.targets: .* has no linear layer query; its linear layers are"):
        build_model(configs.load(path, lora(vit, "{targets: [query]}")))


@pytest.mark.slow
@pytest.mark.parametrize("program", [None, "fsdp_on_cpu.py"], ids=["parallel", "sharded"])
def test_two_processes_train_the_updates(make_config: Any, vit: Path, tmp_path: Path, program: str | None) -> None:
    path, settings = make_config(), lora(vit, "{rank: 2}")
    config = configs.load(path, settings)
    before = {name: value.clone() for name, value in build_model(config).trainable_state().items()}
    own = Path(__file__).with_name(program) if program else None
    done = launch([*([] if own else ["train"]), str(path), *settings], own)
    assert done.returncode == 0, done.stderr
    whole = checkpoint(tmp_path / "run", 12)
    changed = {name for name, value in whole.items() if not torch.equal(value, before[name])}
    updates = {name for name in whole if ".lora_" in name}
    assert changed == updates | {"student.head.weight", "student.head.bias"}
    merged = load_file(tmp_path / "run" / "student" / "model.safetensors")
    assert not [name for name in merged if "lora" in name]
    name = "encoder.network.layers.0.attention.q_proj"
    update = whole[f"student.{name}.lora_B.default.weight"] @ whole[f"student.{name}.lora_A.default.weight"]
    expected = whole[f"student.{name}.base_layer.weight"] + 16 / 2 * update
    torch.testing.assert_close(merged[f"{name}.weight"], expected)
