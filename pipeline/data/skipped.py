"""Samples that a run skipped: causes, counts, and the list that `wcord check --listed` reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from pydantic import TypeAdapter

from pipeline.common.errors import UserError

SKIPPED = "skipped.jsonl"


@dataclass(frozen=True)
class Skipped:
    """A skipped sample.

    Attributes:
        shard: Name of the shard.
        place: Index of the sample in the shard.
        key: Key of the sample.
        cause: Short name of the cause; samples are counted by cause.
        message: Error message.
        unpaired: The sample is valid, but lacks a modality.
        filtered: The sample is valid, but a user-defined stage dropped it.
    """

    shard: str
    place: int
    key: str
    cause: str
    message: str
    unpaired: bool
    filtered: bool = False

    def allowed(self, tolerant: bool, unpaired: bool) -> bool:
        """Whether the policy allows skipping this sample.

        Args:
            tolerant: Whether faulty samples may be skipped.
            unpaired: Whether unpaired samples may be skipped.
        """
        return self.filtered or (unpaired if self.unpaired else tolerant)


_LINE = TypeAdapter(Skipped)


class SampleError(UserError):
    """Raised for a sample that cannot be used. If the policy allows it, the sample is recorded and replaced.

    Args:
        skipped: The record of the sample.
    """

    def __init__(self, skipped: Skipped) -> None:
        super().__init__(skipped.message)
        self.skipped = skipped


class Ledger:
    """All skipped samples of a run, without duplicates, shared by its processes and stored in a file.

    Args:
        path: The file, `skipped.jsonl`.
        samples: Number of samples of the split.
        most: Maximum fraction of faulty samples.
    """

    def __init__(self, path: Path, samples: int, most: float) -> None:
        self.path, self.samples, self.most = path, samples, most
        self.known = {(s.shard, s.place): s for s in read_skipped(path)}
        self.new: list[Skipped] = []

    def add(self, skipped: Iterable[Skipped]) -> None:
        """Add samples that this process has skipped. `share` sends them to the other processes."""
        for one in skipped:
            if (one.shard, one.place) not in self.known:
                self.known[one.shard, one.place] = one
                self.new.append(one)

    def counts(self) -> dict[str, int]:
        """Cause -> number of skipped samples, including those that other processes have shared."""
        return counts(self.known.values())

    def share(self, accelerator: Accelerator) -> None:
        """Exchange newly skipped samples with the other ranks and write them to `skipped.jsonl`. Call it on all ranks.

        Args:
            accelerator: Connects the processes.

        Raises:
            UserError: More samples are faulty than allowed. Raised in all processes.
        """
        everyones: list[Skipped] = gather_object(self.new) if accelerator.num_processes > 1 else self.new
        fresh = {(s.shard, s.place): s for s in everyones}
        self.known |= fresh
        self.new = []
        if fresh and accelerator.is_main_process:
            append_skipped(self.path, fresh.values())
        faulty = [s for s in self.known.values() if not (s.unpaired or s.filtered)]
        if len(faulty) > self.most * self.samples:
            raise UserError(
                f"{len(faulty)} of {self.samples} training samples are faulty, more than data.max_faulty: {self.most} "
                f"allows ({in_words(counts(faulty))}). The first: {faulty[0].message} {self.path} lists all of them. "
                f"To check them again, run `wcord check --listed {self.path} SHARDS`."
            )


def append_skipped(path: Path, skipped: Iterable[Skipped]) -> None:
    """Append samples to a list. A truncated last line, left by a full disk or a killed process, is removed first.

    Args:
        path: The file.
        skipped: The samples.
    """
    with path.open("ab+") as file:
        file.seek(max(file.tell() - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
        file.writelines(f"{json.dumps(asdict(one))}\n".encode() for one in skipped)


def read_skipped(path: Path) -> list[Skipped]:
    """Read a list of skipped samples. A truncated last line is ignored.

    Args:
        path: The file; it may not exist.

    Raises:
        UserError: The file does not contain a list of skipped samples.
    """
    if not path.is_file():
        return []
    try:
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        # Not validate_json, which refuses the surrogate escapes of keys that are not UTF-8.
        return [_LINE.validate_python(json.loads(line)) for line in lines]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a list of skipped samples ({' '.join(str(error).split())[:200]}).") from None


def counts(skipped: Iterable[Skipped]) -> dict[str, int]:
    """Cause -> number of samples, the most frequent first."""
    return dict(Counter(s.cause for s in skipped).most_common())


def in_words(counted: dict[str, int]) -> str:
    """Counts as text: `depth.png: 3, unpaired: 1`."""
    return ", ".join(f"{cause}: {count}" for cause, count in counted.items())
