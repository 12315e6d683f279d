"""Where the network of a run lies: in a local folder, or as an exported student on the Hugging Face Hub."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.data.hub import UNREACHABLE, check_hub, hub_errors
from pipeline.models.description import DESCRIPTION, SPACE, read_description
from pipeline.models.network import WEIGHTS

log = logging.getLogger(__name__)

NAME = re.compile(r"(?!runs/)(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*)(?:@(?P<revision>\w[\w.-]*))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
IMPORTED = re.compile(r"[\w.]+:[\w.]+")

READ = WEIGHTS, SPACE, "encoder/*.json", "tokenizer/*.json", "tokenizer/*.txt", "tokenizer/*.model"
PARTS = "[0-9]", "[0-9][0-9]"
"""The folders of the networks of a joint network."""

FILES = [*READ, *(f"{part}/{file}" for part in PARTS for file in (*READ, DESCRIPTION))]
"""The files of an export that are read, as patterns, without its description: no scripts, no pickles."""


def student_folder(run: str | Path) -> Path:
    """The folder with the network of a run or of an exported student.

    Args:
        run: The folder of either, or, as a text, the name of an exported student on the Hub.

    Raises:
        UserError: See `local_folder`.
    """
    folder = local_folder(run)
    return folder if (folder / DESCRIPTION).is_file() else folder / "student"


def local_folder(run: str | Path) -> Path:
    """A run as a local folder. An exported student on the Hub is downloaded to the cache of huggingface_hub.

    Args:
        run: A folder, or `owner/name` or `owner/name@revision` on the Hub, if that cannot be a path here.

    Raises:
        UserError: The Hub cannot be reached and the cache does not have the student, the Hub does not have it, or
            loading it would call functions that its description names.
    """
    found = _on_hub(run)
    if found is None:
        return Path(run)
    folder = _download(str(run), found[0], found[1])
    _check_imports(str(run), found[0], folder)
    return folder


def pinned(run: str) -> str:
    """The name of a student on the Hub with its commit, `owner/name@commit`; a folder stays as it is.

    Raises:
        UserError: See `local_folder`.
    """
    found = _on_hub(run)
    return run if found is None else f"{found[0]}@{local_folder(run).name}"


def _on_hub(run: str | Path) -> tuple[str, str | None] | None:
    """Repository and revision of a name; None for a path. In a folder that exists, a missing one is a typo."""
    match = NAME.fullmatch(run) if isinstance(run, str) else None
    if match is None or Path(match["owner"]).exists():
        return None
    return f"{match['owner']}/{match['name']}", match["revision"]


def _download(run: str, repository: str, revision: str | None) -> Path:
    if revision is not None and COMMIT.fullmatch(revision) and (cached := _cached(repository, revision)):
        return cached  # a commit does not change
    missing = f"{run}: there is no such folder, and "
    try:
        check_hub()
    except UserError as error:
        if (cached := _cached(repository, revision)) is None:
            raise UserError(f"{missing}{error}") from None
        log.warning(f"{run}: the Hub is unreachable; using the cached commit {cached.name}.")
        return cached
    return _fetch(missing, repository, revision)


def _check_imports(run: str, repository: str, folder: Path) -> None:
    """Reject a description that names Python objects: nobody has read it, and loading it would call them."""
    for path in folder.rglob(DESCRIPTION):
        try:
            spec = read_description(path.parent)
        except ValueError:  # loading it raises a clear error
            continue
        inner: list[Any] = [spec.get("modality"), spec.get("encoder")]
        while inner:
            value = inner.pop()
            if isinstance(value, dict):
                inner += [one for key, one in value.items() if (key, str(one)[:10]) != ("tokenizer", "open_clip:")]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and IMPORTED.fullmatch(value):
                raise UserError(
                    f"{run}: its {DESCRIPTION} imports {value}; for security, students loaded from the Hub must not "
                    f"import code. Download it (`hf download {repository} --local-dir FOLDER`), read "
                    f"FOLDER/{DESCRIPTION}, and pass FOLDER."
                )


def _cached(repository: str, revision: str | None) -> Path | None:
    """The snapshot in the cache of huggingface_hub, if it is complete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=[*FILES, DESCRIPTION], local_files_only=True
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return Path(folder) if (Path(folder) / DESCRIPTION).is_file() else None


def _fetch(missing: str, repository: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    where = f"{repository} on the Hub"
    unknown = (
        f"{missing}the Hub has no repository {repository} that you may read. Check the path or the name; for a private "
        "repository, log in with `hf auth login`."
    )
    with hub_errors(where, revision, unknown):
        about = HfApi().model_info(repository, revision=revision, timeout=UNREACHABLE)
        if DESCRIPTION not in {file.rfilename for file in about.siblings or []}:
            raise UserError(
                f"{where} is no exported student: it has no {DESCRIPTION}. Upload what `wcord export` wrote."
            )
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=FILES))
        # The description comes last, so a snapshot that has it is complete.
        snapshot_download(repository, revision=folder.name, allow_patterns=DESCRIPTION)
    log.info(f"{repository}: commit {folder.name} from the Hub")
    return folder
