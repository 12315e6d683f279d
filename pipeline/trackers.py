"""Where a run's lines are shown: TensorBoard, W&B, MLflow and trackio, by Accelerate's trackers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from pipeline.config import Config
from pipeline.configfile import show_key
from pipeline.errors import UserError
from pipeline.extras import need
from pipeline.shards import write_atomic

PROJECT = "wcord"

TRACKED = "trackers.json"
"""In the run folder: tracker -> what it calls the run, for all but TensorBoard, which is in the folder itself."""


def check_trackers(names: Sequence[str]) -> None:
    """UserError for one whose package is not installed."""
    for name in names:
        if name != "tensorboard":
            need(name, "track")


def start_trackers(config: Config, run: Path, step: int) -> list[GeneralTracker]:
    """Trackers for `show`, which end with `finish()`.

    step: steps done before; TensorBoard drops what came after them, the others show a resumed run as another one.
    Raises UserError for one that does not start, as for want of a login.
    """
    keywords: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": "tensorboard", "logging_dir": str(run), "purge_step": step + 1},
        "wandb": {"run_name": PROJECT, "name": run.name, "dir": str(run)},
        "mlflow": {"experiment_name": PROJECT, "run_name": run.name},
        "trackio": {"run_name": PROJECT, "name": run.name},
    }
    settings = _flat(config.model_dump(mode="json"))
    started = []
    for name in config.train.trackers:
        tracker = LOGGER_TYPE_TO_CLASS[name](**keywords[name])
        try:
            tracker.start()
            if name != "tensorboard":  # which would file the settings as a run of their own
                tracker.store_init_configuration(settings)
        except Exception as error:  # each service raises errors of its own
            raise UserError(
                f"train.trackers: {name} does not start ({type(error).__name__}: {error}). Log in to it, set it to "
                "work offline, or leave it out."
            ) from None
        started.append(tracker)
    if known := {tracker.name: _own_name(tracker) for tracker in started if tracker.name != "tensorboard"}:
        write_atomic(run / TRACKED, json.dumps(known).encode())
    return started


def _own_name(tracker: GeneralTracker) -> str:
    run = tracker.tracker
    return str(run.info.run_id if tracker.name == "mlflow" else run.id if tracker.name == "wandb" else run.name)


def show(trackers: Sequence[GeneralTracker], row: Mapping[str, float], step: int) -> None:
    """Send a line of the log to each."""
    for tracker in trackers:
        # MLflow's local store makes a folder of a name with a slash, which cannot stand beside the file `loss`.
        slash = "." if tracker.name == "mlflow" else "/"
        tracker.log({name.replace("/", slash): value for name, value in row.items()}, step=step)


def send_picture(config: Config, run: Path, title: str, picture: np.ndarray, step: int) -> None:
    """Show a picture, uint8 RGB `[H, W, 3]`, in the trackers of a run after its training.

    What one of them refuses becomes a warning.
    """
    known = json.loads((run / TRACKED).read_bytes()) if (run / TRACKED).is_file() else {}
    for name in [name for name in config.train.trackers if name in ("tensorboard", *known)]:
        try:
            SENDERS[name](run, known.get(name, ""), title, picture, step)
        except Exception as error:  # noqa: PERF203 - each raises errors of its own, and the results stand without it
            print(f"warning: train.trackers: {name} does not take the {title} ({type(error).__name__}: {error}).")


def _send_to_tensorboard(run: Path, known: str, title: str, picture: np.ndarray, step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / "tensorboard")) as writer:
        writer.add_image(title, picture, step, dataformats="HWC")


def _send_to_wandb(run: Path, known: str, title: str, picture: np.ndarray, step: int) -> None:
    wandb = need("wandb", "track")
    with wandb.init(project=PROJECT, id=known, resume="allow", dir=str(run)) as going_on:
        going_on.log({title: wandb.Image(picture)})


def _send_to_mlflow(run: Path, known: str, title: str, picture: np.ndarray, step: int) -> None:
    need("mlflow", "track").MlflowClient().log_image(known, picture, key=title, step=step, synchronous=True)


def _send_to_trackio(run: Path, known: str, title: str, picture: np.ndarray, step: int) -> None:
    trackio = need("trackio", "track")
    going_on = trackio.init(project=PROJECT, name=known, resume="must")
    going_on.log({title: trackio.Image(picture)}, step=step)
    going_on.finish()


SENDERS: dict[str, Callable[[Path, str, str, np.ndarray, int], None]] = {
    "tensorboard": _send_to_tensorboard,
    "wandb": _send_to_wandb,
    "mlflow": _send_to_mlflow,
    "trackio": _send_to_trackio,
}


def _flat(settings: Mapping[str, Any], at: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings by their whole keys, `train.clip`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = (*at, name)
        found |= _flat(value, key) if isinstance(value, Mapping) else {show_key(key): value}
    return found
