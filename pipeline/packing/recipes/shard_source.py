"""Shards to pack as one dataset: their members, labels and groups, and a fingerprint that detects changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.data.dataset import Dataset, Shard
from pipeline.data.label_value import ForeignLabel, LabelValue
from pipeline.data.manifest import load_dataset, local, verify_files
from pipeline.data.member_names import member_names
from pipeline.data.remote import is_remote
from pipeline.packing.recipes.shard_members import Naming
from pipeline.packing.recipes.shard_rows import RowJob


@dataclass(frozen=True)
class ShardSource:
    """Foreign shards, or those of a packed dataset.

    Attributes:
        spec: A packed or indexed folder, or patterns of shards.
        dataset: The content of the shards.
        naming: How their members are named here.
        label: Location of the class, if the user sets it.
    """

    spec: str
    dataset: Dataset
    naming: Naming
    label: str | None = None

    @classmethod
    def open(
        cls, spec: str, fields: Mapping[str, Sequence[str]], label: str | None = None, classes: Sequence[str] = ()
    ) -> ShardSource:
        """Find and count the shards.

        Args:
            spec: A packed or indexed folder, or patterns of shards.
            fields: Field -> extensions, if they are not detected.
            label: Location of the class, such as `json:category`.
            classes: Class names, if the shards contain class indices.

        Raises:
            UserError: There are no such shards, a shard cannot be read, or the label does not exist.
        """
        dataset = load_dataset(spec, label or "label")
        if label and not dataset.extensions:
            raise UserError(f"--label {label}: a packed dataset has its labels in dataset.json; remove the option.")
        if label and label not in dataset.classes:
            raise UserError(
                f"--label {label}: no sample has a class there; the members are {_listed(dataset.extensions)}."
            )
        if classes and not label and "label" not in dataset.classes:
            raise UserError(
                "--classes: no sample has a member cls; set --label to the location of the class, such as "
                "json:category."
            )
        dataset = dataset.classed(label or "label", classes)
        if dataset.extensions:
            naming = Naming(dataset.named(fields).names, keeps_meta="meta" in fields)
        else:
            naming = Naming(member_names(dataset.fields, fields), keeps_meta=True)
        return cls(spec, dataset, naming, label)

    @property
    def extensions(self) -> Iterable[str]:
        """The extensions of the members."""
        return self.dataset.extensions or self.dataset.fields

    def members(self) -> set[str]:
        """The members, as they are named here."""
        return {self.naming.names.get(name, name) for name in self.extensions}

    def jobs(self, group: str | None = None) -> list[RowJob]:
        """The shards, without duplicates.

        Args:
            group: Location of the group, such as `json:clip`.

        Raises:
            UserError: A shard has changed, or no sample has the member that contains the group.
        """
        shards = {shard.file: (split, shard) for split, own in self.dataset.splits.items() for shard in own}
        verify_files(local(self.spec), (shard for _, shard in shards.values()))
        where, labels = self._group(group), self._labels()
        return [
            RowJob(
                number=number,
                url=self._address(shard),
                size=shard.bytes,
                split=split,
                division=self.dataset.division,
                names=self.naming.names,
                group=where,
                labels=labels,
                strict=bool(self.dataset.extensions),
                shard=shard,
            )
            for number, (split, shard) in enumerate(shards.values())
        ]

    def states(self) -> dict[str, tuple[str, str]]:
        """URL of each shard -> its name, and a text that changes with its content."""
        shards = chain.from_iterable(self.dataset.splits.values())
        return {self._address(shard): (shard.file, f"{shard.bytes} {shard.sha256 or shard.state}") for shard in shards}

    def classes(self) -> dict[str, list[str]]:
        """Label of the new dataset -> its class names, without masks."""
        if not self.dataset.extensions:
            return {label: self.dataset.classes[label] for label in self.dataset.counts()}
        label = self.label or "label"
        return {"label": self.dataset.classes[label]} if label in self.dataset.classes else {}

    def _labels(self) -> dict[str, ForeignLabel]:
        """Label of the new dataset -> location of its value."""
        if self.dataset.extensions:
            value = self._named(LabelValue.parse(self.label or "cls"))
            return {label: ForeignLabel(value, tuple(names)) for label, names in self.classes().items()}
        found = {}
        for label, count in self.dataset.counts().items():
            value = LabelValue("label.txt") if label == "label" else LabelValue("meta.json", ("labels", label))
            found[label] = ForeignLabel(value, tuple(map(str, range(count))))  # the shards contain class indices
        return found

    def _named(self, value: LabelValue) -> LabelValue:
        """The same location, with the member's name here."""
        return replace(value, member=self.naming.names.get(value.member, value.member))

    def _group(self, group: str | None) -> LabelValue | None:
        if group is None:
            return None if self.dataset.extensions else LabelValue("meta.json", ("group",))
        value = LabelValue.parse(group)
        if value.member not in self.extensions:
            raise UserError(
                f"--group {group}: no sample has a member `{value.member}`; the members are {_listed(self.extensions)}."
            )
        return self._named(value)

    def _address(self, shard: Shard) -> str:
        if shard.url:
            return shard.url
        above = self.spec.rstrip("/") if is_remote(self.spec) else str(Path(self.spec).absolute())
        return f"{above}/{shard.file}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
