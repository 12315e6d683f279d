"""Where a run's lines are shown: TensorBoard, W&B, MLflow and trackio, by Accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from pipeline.config import Config
from pipeline.configfile import show_key
from pipeline.errors import UserError
from pipeline.extras import need

PROJECT = "wcord"


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
    return started


def show(trackers: Sequence[GeneralTracker], row: Mapping[str, float], step: int) -> None:
    """Send a line of the log to each."""
    for tracker in trackers:
        # MLflow's local store makes a folder of a name with a slash, which cannot stand beside the file `loss`.
        slash = "." if tracker.name == "mlflow" else "/"
        tracker.log({name.replace("/", slash): value for name, value in row.items()}, step=step)


def _flat(settings: Mapping[str, Any], at: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings by their whole keys, `train.clip`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = (*at, name)
        found |= _flat(value, key) if isinstance(value, Mapping) else {show_key(key): value}
    return found
