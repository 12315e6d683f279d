"""Parquet files of a dataset on the Hugging Face Hub, as local files for the recipe `huggingface`.

The files are downloaded at one commit into the cache of huggingface_hub, not streamed. Packing shuffles the rows of the
whole dataset, and a row is read with its row group: from the Hub, each sample would transfer megabytes. Local files
are also read again without the network if packing is interrupted. The `datasets` library is not needed, and no code of
the dataset runs.

If the repository has no Parquet files, those of the Hub's own conversion are used, if it is complete.
"""

from __future__ import annotations

import glob
import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pipeline.common.errors import UserError
from pipeline.data.hub import UNREACHABLE, check_hub, hub_errors
from pipeline.packing.recipes.arrow import configuration, require_pyarrow

log = logging.getLogger(__name__)

NAME = re.compile(
    r"hub:(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w.-]*))?(?:/(?P<configuration>\w[\w./=-]*))?",
    re.ASCII,
)
CONVERTED = "refs/convert/parquet"
"""The branch with the Hub's own conversion to Parquet: CONFIGURATION/SPLIT/0000.parquet."""


class HubFiles(NamedTuple):
    """Downloaded files.

    Attributes:
        folder: The folder of the commit in the cache.
        files: The files in it, in order.
        name: Name of the dataset.
        source: Names the same files for good: `hub:OWNER/NAME@COMMIT/CONFIGURATION`.
        commit: The commit.
        licence: The licence that the Hub states.
    """

    folder: Path
    files: list[Path]
    name: str
    source: str
    commit: str
    licence: str


class _Listed(NamedTuple):
    """The files of a commit: configuration -> its Parquet files; and other files."""

    commit: str
    parquet: Mapping[str, list[str]]
    other: list[str]
    licence: str
    named: set[str]


def is_on_hub(source: str | Path) -> bool:
    """Whether this is the name of a dataset on the Hub."""
    return str(source).startswith("hub:")


def download(source: str) -> HubFiles:
    """Download the Parquet files of a dataset.

    Args:
        source: `hub:OWNER/NAME`, with `@REVISION` and `/CONFIGURATION` as needed.

    Raises:
        UserError: The name is invalid, the Hub cannot be reached or does not have it, there are several configurations,
            or there are no Parquet files.
    """
    match = NAME.fullmatch(source)
    if match is None:
        raise UserError(f"{source}: expected hub:OWNER/NAME, hub:OWNER/NAME/CONFIGURATION or hub:OWNER/NAME@REVISION.")
    repository, revision, wanted = match["repository"], match["revision"], match["configuration"]
    require_pyarrow()
    where = f"{repository} on the Hub"
    unknown = (
        f"{source}: the Hub has no dataset {repository} that you may read. Check the name; for a private or gated "
        "one, accept its terms on its page and log in with `hf auth login`."
    )
    try:
        check_hub()
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    with hub_errors(where, revision, unknown):
        listed = _choose_branch(repository, revision, wanted)
        chosen = _choose(source, repository, listed, wanted)
        folder = _download(repository, listed.commit, listed.parquet[chosen])
    pinned = f"hub:{repository}@{listed.commit}" + ("" if chosen == "." else f"/{chosen}")
    log.info(f"{source}: {len(listed.parquet[chosen])} Parquet files of {pinned}")
    files = [folder / name for name in listed.parquet[chosen]]
    return HubFiles(folder, files, repository.partition("/")[2], pinned, listed.commit, listed.licence)


def _choose_branch(repository: str, revision: str | None, wanted: str | None) -> _Listed:
    """The files of the revision, or of the conversion if these do not have the configurations of the dataset."""
    from huggingface_hub.errors import RevisionNotFoundError

    own = _list(repository, revision)
    one = len(own.named) < 2 or own.named <= own.parquet.keys()
    if revision is not None or (own.parquet and one and (wanted is None or wanted in own.parquet)):
        return own
    try:
        return _list(repository, CONVERTED)._replace(licence=own.licence, other=own.other)
    except RevisionNotFoundError:
        return own


def _list(repository: str, revision: str | None) -> _Listed:
    from huggingface_hub import HfApi

    about = HfApi().dataset_info(repository, revision=revision, timeout=UNREACHABLE)
    parquet: dict[str, list[str]] = defaultdict(list)
    other = []
    for name in sorted(file.rfilename for file in about.siblings or []):
        if name.endswith(".parquet"):
            parquet[str(configuration(Path(name).parent))].append(name)
        else:
            other.append(name)
    card: Any = about.card_data or {}
    licence = card.get("license") or "not stated"
    named = {str(one.get("config_name")) for one in card.get("configs") or [] if isinstance(one, dict)}
    return _Listed(str(about.sha), parquet, other, licence if isinstance(licence, str) else ", ".join(licence), named)


def _choose(source: str, repository: str, listed: _Listed, wanted: str | None) -> str:
    """The configuration to pack.

    Raises:
        UserError: There is none, or it is not clear which one.
    """
    found = sorted(listed.parquet)
    if not found:
        raise UserError(f"{source}: the dataset has no Parquet files. {_instead(repository, listed.other)}")
    if wanted is None and len(found) > 1:
        raise UserError(
            f"{source}: has several configurations: {_few(found)}. Choose one, such as "
            f"`hub:{repository}/{next(name for name in found if name != '.')}`."
        )
    if wanted is not None and wanted not in found:
        raise UserError(f"{source}: there is no configuration `{wanted}`; there are: {_few(found)}.")
    chosen = wanted or found[0]
    if any("partial-" in name for name in listed.parquet[chosen]):
        raise UserError(
            f"{source}: the Hub has converted only the first part of it to Parquet. "
            f"{_instead(repository, listed.other)}"
        )
    return chosen


def _few(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _instead(repository: str, files: list[str]) -> str:
    """How to use a dataset of another layout."""
    if tar := next((name for name in files if name.endswith(".tar")), None):
        shards = PurePosixPath("hf://datasets", repository, PurePosixPath(tar).parent, "*.tar")
        url = str(shards).replace("hf:/", "hf://", 1)
        return f"Its WebDataset shards can be used as they are: data.shards={url}, or `wcord index {url} --out FOLDER`."
    return (
        f"Download it (`hf download {repository} --repo-type dataset --local-dir FOLDER`), and pack FOLDER with `wcord "
        "pack folders` or `wcord pack manifest`."
    )


def _download(repository: str, commit: str, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(name) for name in names]
    return Path(snapshot_download(repository, repo_type="dataset", revision=commit, allow_patterns=patterns))
