"""Samples that a run could not use: why, how many, and a list of them that `wcord check` reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from pydantic import TypeAdapter

from pipeline.errors import UserError

SKIPPED = "skipped.jsonl"


@dataclass(frozen=True)
class Skipped:
    """A sample that was passed over: the `place`-th of its shard.

    cause: what it is counted under. unpaired: nothing is wrong with it, but it lacks a modality.
    """

    shard: str
    place: int
    key: str
    cause: str
    message: str
    unpaired: bool


_LINE = TypeAdapter(Skipped)


class SampleError(UserError):
    """A sample that cannot be used; where skipping is allowed, it is noted and another one takes its place."""

    def __init__(self, skipped: Skipped) -> None:
        super().__init__(skipped.message)
        self.skipped = skipped


class Ledger:
    """All samples that a run passed over, each once, shared by its processes and kept in a file.

    samples: of the split. most: the largest fraction of them that may be faulty.
    """

    def __init__(self, path: Path, samples: int, most: float) -> None:
        self.path, self.samples, self.most = path, samples, most
        self.known = {(s.shard, s.place): s for s in read_skipped(path)}
        self.new: list[Skipped] = []

    def add(self, skipped: Iterable[Skipped]) -> None:
        """Note what this process has passed over since."""
        for one in skipped:
            if (one.shard, one.place) not in self.known:
                self.known[one.shard, one.place] = one
                self.new.append(one)

    def counts(self) -> dict[str, int]:
        """Samples of all processes by cause, as far as they are shared."""
        return counts(self.known.values())

    def share(self, accelerator: Accelerator) -> None:
        """Exchange with the other processes what is new, and write it; called by all of them together.

        Raises UserError in all of them once more samples are faulty than may be.
        """
        everyones: list[Skipped] = gather_object(self.new) if accelerator.num_processes > 1 else self.new
        fresh = {(s.shard, s.place): s for s in everyones}
        self.known |= fresh
        self.new = []
        if fresh and accelerator.is_main_process:
            append_skipped(self.path, fresh.values())
        faulty = [s for s in self.known.values() if not s.unpaired]
        if len(faulty) > self.most * self.samples:
            raise UserError(
                f"{len(faulty)} of {self.samples} training samples are faulty, more than data.max_faulty: {self.most} "
                f"allows ({in_words(counts(faulty))}); the first: {faulty[0].message} All are listed in {self.path}; "
                f"`wcord check --listed {self.path} SHARDS` looks at them again."
            )


def append_skipped(path: Path, skipped: Iterable[Skipped]) -> None:
    """Add lines to a list, in place of one that was cut short: by a full disk, or a process killed as it wrote."""
    with path.open("ab+") as file:
        file.seek(max(file.tell() - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
        file.writelines(f"{json.dumps(asdict(one))}\n".encode() for one in skipped)


def read_skipped(path: Path) -> list[Skipped]:
    """What a run has listed so far, nothing if there is no such file; a line that was cut short is left out.

    Raises UserError for a file that is no such list.
    """
    if not path.is_file():
        return []
    try:
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [_LINE.validate_json(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path}: not a list of skipped samples ({' '.join(str(error).split())[:200]}).") from None


def counts(skipped: Iterable[Skipped]) -> dict[str, int]:
    """Samples by cause, the most frequent first."""
    return dict(Counter(s.cause for s in skipped).most_common())


def in_words(counted: dict[str, int]) -> str:
    """`depth.png: 3, unpaired: 1`."""
    return ", ".join(f"{cause}: {count}" for cause, count in counted.items())
