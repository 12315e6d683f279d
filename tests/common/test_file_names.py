"""Names: operating-system files are recognised anywhere in a path, and names are compared in one normal form."""

from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

import pytest

from pipeline.common.file_names import left_by, nfc, on_disk


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Thumbs.db", "Thumbs.db"),
        ("cat/desktop.ini", "desktop.ini"),
        ("cat/DESKTOP.INI", "DESKTOP.INI"),
        ("./.DS_Store", ".DS_Store"),
        ("__MACOSX/cat/1.jpg", "__MACOSX"),
        ("a/@eaDir/1.jpg/SYNO.jpg", "@eaDir"),
        (".ipynb_checkpoints/1.jpg", ".ipynb_checkpoints"),
        ("cat/._0001.jpg", "._*"),
        ("Thumbs.db.jpg", None),
        ("thumbs/1.jpg", None),
        ("my_desktop.ini", None),
        ("cat/.hidden.jpg", None),
        ("cat/_1.jpg", None),
        ("__meta__/1.jpg", None),
    ],
)
def test_what_systems_leave(path: str, name: str | None) -> None:
    assert left_by(path) == name


def test_a_path_is_found_under_the_form_on_disk(tmp_path: Path) -> None:
    folder, name = normalize("NFD", "fähre"), normalize("NFC", "é.jpg")
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).touch()
    for form in ("NFC", "NFD"):
        assert on_disk(tmp_path / normalize(form, f"fähre/{name}")) == tmp_path / folder / name
    missing = tmp_path / normalize("NFC", "fähre") / "ü.jpg"
    assert nfc(str(on_disk(missing))) == str(missing)
    assert on_disk(tmp_path / "a.jpg") == tmp_path / "a.jpg"
