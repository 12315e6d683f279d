"""The callbacks of a run: built from a config, called on events, and stored in checkpoints."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor

from losses.registry import find
from pipeline.common.errors import UserError
from pipeline.config.components import check_keywords
from pipeline.config.settings import Config
from pipeline.models.network import Joint, Network
from pipeline.train.callbacks import CALLBACKS
from pipeline.train.callbacks.base import Callback, Context

if TYPE_CHECKING:
    from pipeline.train.state import Training

log = logging.getLogger(__name__)


class Callbacks:
    """The callbacks of a run, in order. Names are `ema` for shipped ones, else `module:Class`; a second one gets `#2`.

    Args:
        callbacks: The callbacks.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.named: dict[str, Callback] = {}
        for callback in callbacks:
            self.named[_distinct(_name_of(callback), self.named)] = callback
        self.stopped: dict[str, str] = {}  # name of a callback -> its reason to stop the run

    def call(self, event: str, training: Training, step: int, metrics: Mapping[str, Any] = {}) -> None:
        """Call an event of all callbacks: in the first process, or in all processes if the callback requests it.

        Raises:
            UserError: A callback raised an error. The message contains its name.
        """
        main = training.accelerator.is_main_process
        for name, callback in self.named.items():
            if not (main or callback.every_process):
                continue
            context = Context(
                step,
                training.schedule.steps,
                training.distillation,
                training.optimizer.optimizer,
                metrics,
                training.config,
                training.run,
                main,
                training.held_out.monitor if training.held_out else None,
                partial(self._stop, name),
            )
            _run(name, f"{event} at step {step}", partial(getattr(callback, event), context))

    def _stop(self, name: str, reason: str) -> None:
        self.stopped.setdefault(name, reason)

    def asked(self, accelerator: Accelerator) -> bool:
        """Whether a callback in any process has requested to stop the run. Call it in all processes."""
        if not self.named or accelerator.num_processes == 1:
            return bool(self.stopped)
        own = torch.tensor(float(bool(self.stopped)), device=accelerator.device)
        return bool(accelerator.reduce(own, "sum") > 0)

    def say_why(self) -> None:
        """Log why callbacks ended the run early."""
        for name, reason in self.stopped.items():
            log.info(f"{name} ended the run: {reason}.")

    def student(self, student: Network | Joint) -> Network | Joint:
        """The network that is validated and saved."""
        for callback in self.named.values():
            student = callback.student(student)
        return student

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The states for a checkpoint.

        Raises:
            UserError: A state is not made of tensors and JSON values.
        """
        states = {}
        for name, callback in self.named.items():
            states[name] = _run(name, "state_dict", callback.state_dict)
            for key, value in states[name].items():
                if not isinstance(value, Tensor) and not _is_json(value):
                    raise UserError(
                        f"callback {name}: state_dict: {key!r} is a {type(value).__name__}; checkpoints store tensors "
                        "and JSON values only."
                    )
        return states

    def load_state_dict(self, states: Mapping[str, Mapping[str, Any]], main: bool) -> None:
        """Restore the states of a checkpoint. New callbacks start without a state; states of removed ones are dropped.

        Args:
            states: Callback -> its state.
            main: Whether this is the first process.
        """
        for name, state in states.items():
            if name in self.named and (main or self.named[name].every_process):
                _run(name, "load_state_dict", partial(self.named[name].load_state_dict, dict(state)))
        new, gone = self.named.keys() - states.keys(), states.keys() - self.named.keys()
        if main and (new or gone):
            told = [f"new, without saved state: {', '.join(sorted(new))}"] if new else []
            told += [f"removed: {', '.join(sorted(gone))}"] if gone else []
            log.warning(f"train.callbacks: the callbacks differ from those in the checkpoint ({'; '.join(told)}).")


def build_callbacks(config: Config, own: Sequence[Callback] = ()) -> Callbacks:
    """Build the callbacks of `train.callbacks`.

    Args:
        config: The config.
        own: Callbacks passed in Python, which are called after those of the config.

    Raises:
        UserError: A callback does not exist, or its keywords are wrong.
    """
    for callback in own:
        if not isinstance(callback, Callback):
            what = callback.__name__ if inspect.isclass(callback) else type(callback).__name__
            raise UserError(f"callbacks: {what} is not an instance of wcord.Callback.")
    found = [_build(f"train.callbacks.{i}", written) for i, written in enumerate(config.train.callbacks)]
    return Callbacks([*found, *own])


def _build(where: str, written: str | Mapping[str, Any]) -> Callback:
    spec = {"name": written} if isinstance(written, str) else dict(written)
    name = spec.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"{where}: must be a name, or {{name: ..., keywords}}, got {written}.")
    try:
        kind = find(name, CALLBACKS, Callback, "callback")
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # importing user code may raise any error
        raise UserError(f"{where}: {name} fails on import: {type(error).__name__}: {error}") from error
    keywords = check_keywords(kind, spec, where)
    try:
        return kind(**keywords)
    except Exception as error:  # user code may raise any error
        raise UserError(f"{where}: {name}: {type(error).__name__}: {error}") from error


def _run(name: str, what: str, call: Any) -> Any:
    try:
        return call()
    except UserError:
        raise
    except Exception as error:  # user code may raise any error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"callback {name}: {what} failed: {reason}") from error


def _name_of(callback: Callback) -> str:
    kind = type(callback)
    return next((name for name, own in CALLBACKS.items() if own is kind), f"{kind.__module__}:{kind.__qualname__}")


def _distinct(name: str, taken: Mapping[str, Callback]) -> str:
    number = 1 + sum(other.split("#")[0] == name for other in taken)
    return name if number == 1 else f"{name}#{number}"


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False
