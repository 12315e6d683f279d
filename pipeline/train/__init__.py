"""The training loop and its parts: state, schedule, signals, resume, launch, FSDP, profiler."""

from typing import TYPE_CHECKING

from pipeline.common.lazy import hand_on

if TYPE_CHECKING:
    from pipeline.train.loop import train as train

__getattr__ = hand_on(__name__, {"train": "loop"})
