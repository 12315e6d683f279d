"""What a config says of its shards, to their addresses."""

from __future__ import annotations

from pathlib import Path

import pytest
from foreign_shards import plain_tar, tiny

from pipeline.common.errors import UserError
from pipeline.data.foreign import plain_names
from pipeline.data.shard_urls import shard_urls


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six shards in two folders, and files that are none."""
    for place in ("a", "b"):
        for number in range(3):
            plain_tar(tmp_path / place / f"{number:05d}.tar", [tiny(number)])
    (tmp_path / "a" / "00000_stats.json").write_text("{}")
    (tmp_path / "a" / ".hidden.tar").write_bytes(b"")
    return tmp_path


def relative(folder: Path, pattern: str) -> list[str]:
    return [str(Path(url).relative_to(folder)) for url in shard_urls(pattern)]


ALL = [f"{place}/{number:05d}.tar" for place in "ab" for number in range(3)]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("{folder}/a/00001.tar", ["a/00001.tar"]),
        ("{folder}/a/{{00000..00002}}.tar", ALL[:3]),
        ("{folder}/{{b,a}}/0000{{0,2}}.tar", ["b/00000.tar", "b/00002.tar", "a/00000.tar", "a/00002.tar"]),
        ("{folder}/*/00001.tar", ["a/00001.tar", "b/00001.tar"]),
        ("{folder}/**/*.tar", ALL),
        ("{folder}", ALL),
        ("{folder}/b", ALL[3:]),
        ("{folder}/b::{folder}/a/0000[01].tar", [*ALL[3:], *ALL[:2]]),
    ],
)
def test_braces_globs_lists_folders_and_one_tar(folder: Path, pattern: str, found: list[str]) -> None:
    assert relative(folder, pattern.format(folder=folder)) == found


def test_a_relative_pattern_is_of_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert shard_urls("a/{00000..00002}.tar") == [str(folder / name) for name in ALL[:3]]
    assert shard_urls("b") == [str(folder / name) for name in ALL[3:]]


def test_addresses_of_a_store_are_named_without_asking_it() -> None:
    urls = [f"s3://bucket/cc/{number:02d}.tar" for number in range(3)]
    assert shard_urls("s3://bucket/cc/{00..02}.tar") == urls
    assert shard_urls("https://host/x.tar::hf://datasets/me/set/data/train-00.tar") == [
        "https://host/x.tar",
        "hf://datasets/me/set/data/train-00.tar",
    ]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "pipe:curl -s https://host/x.tar",
            r"data\.shards: pipe:curl .*: pipe: commands are never run\. Use the URL of the shards",
        ),
        ("{folder}/a/00000.tar::{folder}/a/00000.tar", r"00000\.tar occurs twice"),
        ("{folder}/a::{folder}/a/*.tar", r"a/00000\.tar occurs twice"),
        ("{folder}/a/00009.tar", r"00009\.tar: not found"),
        ("{folder}/a/{{00000..00009}}.tar", r"00003\.tar: not found"),
        ("{folder}/nothing/*.tar", r"contains no dataset\.json and no \.tar\. Use a packed dataset, or"),
        ("{folder}/empty", r"contains no dataset\.json and no \.tar\."),
        ("https://me:secret@host/{{0..3}}.tar", r"^https://…@host: .* must not contain a user name or password"),
        ("https://host/0.tar?signature=secret", r"^https://host/0\.tar: .* Remove `\?` and everything after it"),
    ],
)
def test_what_is_no_shard_is_named_with_the_cure(folder: Path, pattern: str, message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=message) as raised:
        shard_urls(pattern.format(folder=folder))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz", "tar.zst", "tar.xz", "tar.bz2"])
def test_a_compressed_tar_is_refused_with_the_cure(folder: Path, suffix: str) -> None:
    (folder / "b" / f"00003.{suffix}").write_bytes(b"")
    message = rf"00003\.{suffix}: the tar is compressed, which does not allow random access\. Decompress"
    with pytest.raises(UserError, match=message):
        shard_urls(str(folder))


def test_names_of_side_cars_differ_and_lead_nowhere() -> None:
    urls = [
        "s3://bucket/a/0.tar",
        "/data/b/0.tar",
        "/data/c/b/0.tar",
        "https://host/ü ä/.._x.tar",
        "/x/--.tar",
        "/y/--.tar",
    ]
    names = plain_names(urls)
    assert len(set(names.values())) == len(urls)
    assert names["s3://bucket/a/0.tar"] == "0.tar"
    assert names["/data/b/0.tar"] == "b-0.tar"
    assert all(name.endswith(".tar") and name[0].isalnum() and "/" not in name for name in names.values())
