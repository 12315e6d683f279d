"""Splits within shards: which samples of a shard are used for training, and which are held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pipeline.common.hashing import digest
from pipeline.data.label_value import LabelValue

REST = "train"


class Division(BaseModel):
    """A rule that assigns each sample to a split by a hash of its key or its group.

    Attributes:
        shares: Split -> fraction of the samples or groups, in (0, 1). The rest is `train`.
        group: Location of the group, e.g. `json:clip`. Samples of a group stay in one split. "" means hash the key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    shares: dict[str, Annotated[float, Field(gt=0, lt=1)]]
    group: str = ""

    @property
    def member(self) -> str:
        """The member that contains the group; "" if there is none."""
        return LabelValue.parse(self.group).member if self.group else ""

    def split_of(self, key: str, members: Mapping[str, bytes | None]) -> str:
        """Determine the split of a sample.

        Args:
            key: Key of the sample.
            members: Member -> bytes, including the member with the group. A sample without a group forms its own group.
        """
        group = key
        if self.group and (data := members.get(self.member)) is not None:
            try:
                group = LabelValue.parse(self.group).read(data) or key
            except ValueError:
                group = key
        place, end = digest(f"split/{group}") / 2**64, 0.0
        for split, share in self.shares.items():
            end += share
            if place < end:
                return split
        return REST
