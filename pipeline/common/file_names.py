"""Names of files: one Unicode normal form, and the names of operating-system files (`.DS_Store`, …)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from unicodedata import normalize

log = logging.getLogger(__name__)

LEFT = re.compile(
    r"(?:^|/)(?:\._[^/]*|\.DS_Store|Icon\r|__MACOSX|Thumbs\.db|ehthumbs\.db|desktop\.ini|@eaDir|\.ipynb_checkpoints)(?:/|$)",
    re.IGNORECASE,
)
"""Files and folders of macOS, Windows, Synology and Jupyter, anywhere in a path."""


def left_by(path: str) -> str | None:
    """The operating-system file or folder that a path is part of: `__MACOSX`; `._*` for `cat/._1.jpg`; else None."""
    if (match := LEFT.search(path)) is None:
        return None
    name = match[0].strip("/")
    return "._*" if name.startswith("._") else name


def say_skipped(where: str, left: Mapping[str, int]) -> None:
    """Log how many operating-system files and folders were skipped, if there are any.

    Args:
        where: Where they are.
        left: Name as of `left_by` -> number.
    """
    if left:
        names = ", ".join(sorted(left)[:3]) + (", …" if len(left) > 3 else "")
        log.info(f"{where}: skipped {sum(left.values())} operating-system files or folders ({names})")


def nfc(text: str) -> str:
    """The text in Unicode normal form C, in which names are compared. macOS writes names in form D."""
    return text if text.isascii() else normalize("NFC", text)


def on_disk(path: Path) -> Path:
    """The path as it is on disk, if a part of it is written there in another Unicode normal form."""
    if str(path).isascii() or path.exists():
        return path
    found = Path(path.anchor)
    for part in path.relative_to(found).parts:
        forms = (found / form for form in (part, normalize("NFC", part), normalize("NFD", part)))
        found = next((form for form in forms if form.exists()), found / part)
    return found
