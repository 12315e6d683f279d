"""Sends the log to TensorBoard, W&B, MLflow and trackio, with the trackers of Accelerate."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.common.optional_deps import require_package
from pipeline.config.document import show_key
from pipeline.config.settings import Config

log = logging.getLogger(__name__)

PROJECT = "wcord"

TRACKED = "trackers.json"
"""File in the run folder: tracker -> the tracker's run id. TensorBoard, which writes to the folder, has none."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of the trackers are installed.

    Raises:
        UserError: One is not installed.
    """
    for name in names:
        if name != "tensorboard":
            require_package(name, "track")


def start_trackers(config: Config, run: Path, step: int) -> list[GeneralTracker]:
    """Start the trackers of a config. End them with `finish()`.

    Args:
        config: The config.
        run: The run folder.
        step: Number of steps already taken. TensorBoard drops later ones; the others show a resumed run as a new run.

    Raises:
        UserError: A tracker cannot be started, e.g. because the user is not logged in.
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
            if name != "tensorboard":  # TensorBoard would show the settings as a separate run
                tracker.store_init_configuration(settings)
        except Exception as error:  # each service raises its own errors
            raise UserError(
                f"train.trackers: {name} cannot be started ({type(error).__name__}: {error}). Log in, set it to "
                "offline mode, or remove it."
            ) from None
        started.append(tracker)
    if known := {tracker.name: _own_name(tracker) for tracker in started if tracker.name != "tensorboard"}:
        write_atomic(run / TRACKED, json.dumps(known).encode())
    return started


def _own_name(tracker: GeneralTracker) -> str:
    run = tracker.tracker
    return str(run.info.run_id if tracker.name == "mlflow" else run.id if tracker.name == "wandb" else run.name)


def show(trackers: Sequence[GeneralTracker], row: Mapping[str, float], step: int) -> None:
    """Send one line of the log to each tracker."""
    for tracker in trackers:
        # For a name with a slash, the local store of MLflow creates a folder, which conflicts with the file `loss`.
        slash = "." if tracker.name == "mlflow" else "/"
        tracker.log({name.replace("/", slash): value for name, value in row.items()}, step=step)


def send_picture(config: Config, run: Path, title: str, picture: np.ndarray, step: int) -> None:
    """Send a picture to the trackers of a run after training. Errors become warnings.

    Args:
        config: The config.
        run: The run folder.
        title: Name of the picture.
        picture: uint8 RGB `[H, W, 3]`.
        step: Step at which the trackers show it.
    """
    known = _known(run / TRACKED)
    for name in [name for name in config.train.trackers if name in ("tensorboard", *known)]:
        try:
            SENDERS[name](run, known.get(name, ""), title, picture, step)
        except Exception as error:  # noqa: PERF203 - each raises its own errors, and results do not depend on it
            log.warning(f"train.trackers: {name} did not accept the {title} ({type(error).__name__}: {error}).")


def _known(path: Path) -> dict[str, str]:
    """The name of the run in each tracker. {} if the file is missing or damaged, on which no result depends."""
    try:
        known = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning(f"{path}: damaged ({error}); pictures are not sent to the trackers named there.")
        return {}
    return {name: own for name, own in known.items() if isinstance(own, str)} if isinstance(known, dict) else {}


def _send_to_tensorboard(run: Path, known: str, title: str, picture: np.ndarray, step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / "tensorboard")) as writer:
        writer.add_image(title, picture, step, dataformats="HWC")


def _send_to_wandb(run: Path, known: str, title: str, picture: np.ndarray, step: int) -> None:
    wandb = require_package("wandb", "track")
    with wandb.init(project=PROJECT, id=known, resume="allow", dir=str(run)) as going_on:
        going_on.log({title: wandb.Image(picture)})


def _send_to_mlflow(run: Path, known: str, title: str, picture: np.ndarray, step: int) -> None:
    require_package("mlflow", "track").MlflowClient().log_image(known, picture, key=title, step=step, synchronous=True)


def _send_to_trackio(run: Path, known: str, title: str, picture: np.ndarray, step: int) -> None:
    trackio = require_package("trackio", "track")
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
    """Flatten nested settings to full keys such as `train.clip`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = (*at, name)
        found |= _flat(value, key) if isinstance(value, Mapping) else {show_key(key): value}
    return found
