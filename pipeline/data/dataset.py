"""The manifest of a dataset, `dataset.json`: shards, fields, splits, classes and member names."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.common.errors import UserError
from pipeline.data.division import Division
from pipeline.data.label_value import ForeignLabel, LabelValue
from pipeline.data.member_names import member_names
from pipeline.data.remote import is_remote, mirror

MANIFEST = "dataset.json"


class Stated(BaseModel):
    """Where the number of samples of a shard is from that was not counted.

    Attributes:
        by: URL or path of the file that states it.
        extensions: All extensions of the dataset, from the first sample of each shard.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    by: str
    extensions: tuple[str, ...]


class Shard(BaseModel):
    """One shard, a tar file.

    Attributes:
        file: File name next to `dataset.json`. For a shard elsewhere: a unique name, with which the names of its
            cached-feature shards begin.
        samples: Number of samples of the split in this shard.
        bytes: File size in bytes.
        sha256: SHA-256 of the file, or "" if it was not computed.
        url: URL or absolute path of a shard that is not next to `dataset.json`, else "".
        state: Modification time or version when the shard was indexed, or "" if unknown.
        total: Number of samples of all splits, if the shard contains several splits.
        stated: Where the number of samples is from if they were not counted. It is verified before the shard is used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: Annotated[str, Field(pattern=r"^\w[\w.-]*\.tar$")]  # a plain name: it must not lead out of the folder
    samples: int
    bytes: int
    sha256: str
    url: str = ""
    state: str = ""
    total: int = 0
    stated: Stated | None = None

    def path(self, folder: Path) -> Path:
        """Local path of the shard. A remote shard may not be downloaded yet.

        Args:
            folder: Folder of the dataset.
        """
        if not self.url:
            return folder / self.file
        if is_remote(self.url):
            above, _, name = self.url.rpartition("/")
            return mirror(above) / name
        return Path(self.url)

    @property
    def content(self) -> str:
        """An identifier that changes with the content of the shard, or with the choice of samples for the split."""
        if not self.url:
            return self.sha256
        return f"{self.sha256 or f'{self.url} {self.bytes} {self.state}'} {self.samples}/{self.total}"


@dataclass(frozen=True)
class Layout:
    """Where to find the samples of a split in the shards.

    Attributes:
        folder: Folder of the dataset.
        names: Extension in the shard -> member, e.g. `jpg` -> `rgb.jpg`, for extensions that are not member names.
        division: The rule that assigns the samples of a shard to splits, if there is one.
        split: The split to read; used with `division`.
    """

    folder: Path
    names: Mapping[str, str] = field(default_factory=dict)
    division: Division | None = None
    split: str = ""


class Dataset(BaseModel):
    """The content of `dataset.json`.

    Attributes:
        version: Version of the format.
        name: Name of the dataset.
        recipe: Recipe that packed it, or `webdataset` for indexed shards.
        fields: Member -> number of samples that contain it, e.g. `{"rgb.jpg": 900, "depth.png": 900}`.
        splits: Split -> its shards.
        classes: Label -> class names in order. `label` is read from `label.txt`, other labels from `meta.json` under
            `labels`.
        masks: Label -> pixel value of each class. The label is the member `NAME.png`, which encodes one class per
            pixel. Pixels with other values are ignored.
        units: Member -> unit.
        split_rule: How samples were assigned to splits.
        licence: Licence of the data.
        source: Where the data come from, if it is a commit on the Hugging Face Hub.
        refused: Number of samples that packing rejected.
        extensions: Foreign shards only: extension -> number of samples that have it.
        names: Foreign shards only: extension -> member, as set by `--field`. Common extensions are detected.
        division: The rule that assigns the samples of a shard to splits, if there is one.
    """

    model_config = ConfigDict(extra="forbid")
    version: int = 1
    name: str
    recipe: str
    fields: dict[str, int]
    splits: dict[str, list[Shard]]
    classes: dict[str, list[str]]
    masks: dict[str, list[Annotated[int, Field(ge=0, le=65535)]]] = {}
    units: dict[str, str]
    split_rule: str
    licence: str = "not stated"
    source: str = ""
    refused: int = 0
    extensions: dict[str, int] = {}
    names: dict[str, str] = {}
    division: Division | None = None

    @model_validator(mode="after")
    def _masks_have_classes(self) -> Dataset:
        for label, values in self.masks.items():
            names = self.classes.get(label, [])
            if not len(names) == len(values) == len(set(values)) > 0:
                raise ValueError(f"the mask `{label}` has {len(names)} classes and {len(set(values))} pixel values")
        return self

    def samples(self, split: str) -> int:
        """Number of samples of a split; 0 if there is no such split."""
        return sum(shard.samples for shard in self.splits.get(split, []))

    @property
    def counted(self) -> bool:
        """Whether all samples were counted. Otherwise `fields` is about the first samples of shards."""
        return all(shard.stated is None for shards in self.splits.values() for shard in shards)

    def counts(self) -> dict[str, int]:
        """Label -> number of classes, for all labels except masks."""
        return {label: len(names) for label, names in self.classes.items() if label not in self.masks}

    def classed(self, label: str, names: Sequence[str]) -> Dataset:
        """Return the dataset with these class names for a label. It is unchanged if `names` is empty.

        Args:
            label: The label.
            names: Class names in order.

        Raises:
            UserError: There are fewer names than classes, or the dataset already has class names.
        """
        if not names:
            return self
        if not self.extensions:
            raise UserError("data.classes: this dataset has its class names in dataset.json. Remove data.classes.")
        found = self.classes.get(label, [])
        numbered = found == [str(number) for number in range(len(found))]
        if unknown := found[len(names) :] if numbered else sorted(set(found) - set(names)):
            raise UserError(
                f"data.classes: has {len(names)} names, none of them for the value `{unknown[0]}` of {label}. Add a "
                "name for it."
            )
        return self.model_copy(update={"classes": {**self.classes, label: list(names)}})

    def foreign_label(self, label: str) -> ForeignLabel | None:
        """Location of a label in foreign shards; None for a packed dataset."""
        if not self.extensions or label not in self.classes:
            return None
        value = LabelValue("label.txt") if label == "label" else LabelValue.parse(label)
        member = self.names.get(value.member, value.member)
        return ForeignLabel(LabelValue(member, value.path), tuple(self.classes[label]))

    def layout(self, folder: Path, split: str = "") -> Layout:
        """Where to find the samples in the shards.

        Args:
            folder: Local folder of the dataset.
            split: The split to read, or "" for the samples of all splits.
        """
        return Layout(folder, self.names, self.division if split else None, split)

    def digest(self) -> str:
        """A short hash of the content of all shards of all splits: 16 hexadecimal digits."""
        hashes = [shard.content for shards in self.splits.values() for shard in shards]
        return hashlib.sha256(" ".join(sorted(hashes)).encode()).hexdigest()[:16]

    def named(self, fields: Mapping[str, Sequence[str]]) -> Dataset:
        """Return the dataset with the extensions of foreign shards mapped to members. A packed one is unchanged.

        Args:
            fields: Field -> extensions, as in `data.fields`. For other fields, common extensions are detected.
        """
        if not self.extensions:
            return self
        names = (self.names if not fields else {}) or member_names(self.extensions, fields)
        counts = Counter[str]()
        for extension, samples in self.extensions.items():
            counts[names.get(extension, extension)] += samples
        return self.model_copy(update={"names": names, "fields": dict(counts)})
