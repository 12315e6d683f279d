"""User-defined stages between shards and networks: they change or drop samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from losses.registry import import_object
from pipeline.common.errors import UserError
from pipeline.data.decoding import place_of, sample_error
from pipeline.data.shard_reader import Sample

Stage = Callable[[Iterator[Sample]], Iterable[Sample]]
"""A function from an iterator of samples to an iterable of samples, like `webdataset.select(f)`."""


class UserStage:
    """A user-defined stage, imported by name. It is called with one sample at a time.

    A stage must not keep state between samples, since a resumed run does not restore it.

    Args:
        path: `package.module:name`.
        setting: The config key or option that specifies it, for messages.

    Raises:
        UserError: The function does not exist.
    """

    def __init__(self, path: str, setting: str = "data.stages") -> None:
        self.path, self.setting = path, setting
        try:
            self.stage: Stage = import_object(path)
        except ValueError as error:
            raise UserError(f"{setting}: {error}") from None
        if not callable(self.stage):
            raise UserError(
                f"{setting}: {path} is not a function. A stage takes an iterator of samples and yields samples."
            )

    def __call__(self, raw: Sample) -> Sample:
        """Apply the stage to one sample.

        Args:
            raw: `__key__`, and member -> bytes.

        Returns:
            The sample that the stage returns.

        Raises:
            SampleError: The stage drops the sample.
            UserError: The stage fails, or returns several samples.
        """
        try:
            found: Sequence[Any] = list(self.stage(iter([raw])))
        except Exception as error:  # user code may raise any error
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"{self.setting}: {self.path} failed on {place_of(raw)}: {reason}") from error
        if not found:
            message = f"{place_of(raw)}: dropped by {self.path}."
            raise sample_error(raw, f"dropped by {self.path}", message, filtered=True)
        if len(found) > 1 or not isinstance(found[0], dict):
            raise UserError(f"{self.setting}: {self.path} must return at most one sample, a dict, for each sample.")
        return {name: value for name, value in raw.items() if name.startswith("__")} | found[0]
