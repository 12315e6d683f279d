"""Any image model of timm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor, nn

from losses import Features
from modalities.encoders.library import (
    LibraryEncoder,
    adapt_input,
    closest,
    first_line,
    measure_image,
    preprocessing,
    quiet,
    require,
)
from modalities.encoders.weights import load_weights

KEPT = ("input_size", "fixed_input_size", "mean", "std", "crop_pct", "interpolation", "first_conv", "classifier")
"""The model settings that an exported student keeps."""


class Timm(LibraryEncoder):
    """A timm model without its classifier. The maps are the outputs of its stages; the preprocessing is the model's.

    Inputs without 3 channels, such as depth, also work with pretrained weights: the first convolution is adapted, and
    the input keeps the units of its modality.

    Args:
        channels: Channels of the input.
        model: `resnet50.a1_in1k`, a Hub name `timm/resnet50.a1_in1k`, or a local folder with `config.json` and
            `model.safetensors`.
        weights: `pretrained`, `random`, or a weight file of this model.
        size: Input size in pixels; None means that of the model.

    Raises:
        ValueError: timm is not installed or has no such model, or the weights cannot be loaded or do not match.
    """

    def __init__(
        self,
        channels: int,
        *,
        model: str,
        weights: str = "pretrained",
        size: Annotated[int, Ge(16)] | None = None,
    ) -> None:
        timm = require("timm", "timm")
        from timm.data import resolve_data_config

        network: Any = read_timm(timm, model, weights, size)
        own = resolve_data_config({}, model=network)
        adapt_input(network, channels, f"timm: {model}")
        size = size or own["input_size"][-1]
        super().__init__(preprocessing(channels, size, own["mean"], own["std"], own["crop_pct"]))
        self.network = network
        self.staged = hasattr(network, "forward_intermediates")
        measure_image(self, f"timm: {model}")

    def forward(self, x: Tensor) -> Features:
        x = self.normalise(x)
        if self.staged:
            last, maps = self.network.forward_intermediates(x)  # type: ignore[operator]
        else:
            last = self.network.forward_features(x)  # type: ignore[operator]
            maps = [last]
        return Features(self.network.forward_head(last), list(maps))  # type: ignore[operator]

    def portable(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Write the config of a model that is not part of timm to `folder/encoder`; see `Encoder.portable`."""
        spec = super().portable(spec, folder)
        if "/" not in spec["model"] and not Path(spec["model"]).is_dir():
            return spec
        own = self.network.pretrained_cfg
        known = {key: own[key] for key in KEPT if own.get(key) is not None}
        (folder / "encoder").mkdir(parents=True, exist_ok=True)
        config = {
            "architecture": own["architecture"],
            "num_classes": own.get("num_classes", 0),
            "pretrained_cfg": known,
        }
        (folder / "encoder" / "config.json").write_text(json.dumps(config, indent=1))
        return {**spec, "model": "./encoder"}


def read_timm(timm: Any, model: str, weights: str, size: int | None) -> nn.Module:
    """Build a timm model for 3 channels, without classifier.

    Args:
        timm: The library.
        model: See `Timm`.
        weights: See `Timm`.
        size: See `Timm`.

    Raises:
        ValueError: See `Timm`.
    """
    folder = Path(model)
    local = folder.is_dir()
    name = f"local-dir:{folder}" if local else f"hf-hub:{model}" if "/" in model else model
    if not local and "/" not in model and not timm.is_model(model):
        raise ValueError(f"timm: there is no model {model!r}{closest(model, timm.list_models())}")
    if name == model and weights == "pretrained" and "." in model and model not in (known := timm.list_pretrained()):
        raise ValueError(f"timm: there are no weights {model!r}{closest(model, known)}")
    try:
        with quiet("timm"):
            # The weights of a local folder are loaded below, which reports mismatches.
            own = weights == "pretrained" and not local
            network: Any = timm.create_model(name, pretrained=own, num_classes=0)
            if size and network.pretrained_cfg.get("fixed_input_size"):
                network = timm.create_model(name, pretrained=own, num_classes=0, img_size=size)
    except Exception as error:  # hubs, networks and models may raise any error
        raise ValueError(
            f"timm: cannot load {model!r}: check the name; without a network, download the weights elsewhere and set "
            f"`weights` to the file, or `weights: random`. ({first_line(error)})"
        ) from error
    if weights == "pretrained" and local:
        files = [folder / "model.safetensors", folder / "pytorch_model.bin"]
        weights = str(next((file for file in files if file.is_file()), files[0]))
    if weights not in ("pretrained", "random"):
        heads = network.pretrained_cfg.get("classifier") or ()
        load_weights(network, weights, skip=[f"{h}." for h in ([heads] if isinstance(heads, str) else heads)])
    return network  # type: ignore[no-any-return]
