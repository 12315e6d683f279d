"""What the members of other people's shards are called here."""

from __future__ import annotations

import pytest

from pipeline.data.member_names import member_names, member_of


@pytest.mark.parametrize(
    ("extension", "member"),
    [("jpg", "rgb.jpg"), ("jpeg", "rgb.jpg"), ("png", "rgb.png"), ("webp", "rgb.webp"), ("txt", "text.txt")]
    + [(kind, f"audio.{kind}") for kind in ("wav", "flac", "mp3", "ogg")]
    + [(kind, f"points.{kind}") for kind in ("ply", "pcd", "bin")]
    + [("cls", "label.txt")],
)
def test_the_usual_extensions_are_known(extension: str, member: str) -> None:
    assert member_names([extension], {}) == {extension: member}


@pytest.mark.parametrize("extension", ["json", "depth.png", "rgb.jpg", "npy", "npz", "seg.png"])
def test_others_keep_their_names(extension: str) -> None:
    assert member_names([extension], {}) == {}


def test_the_config_says_otherwise() -> None:
    found = ["jpg", "left.jpg", "right.jpeg", "caption", "depth16.png", "txt"]
    fields = {"rgb": ["left.jpg", "Right.JPEG"], "text": ["caption"], "depth": ["depth16.png"], "meta": ["json"]}
    assert member_names(found, fields) == {
        "left.jpg": "rgb.jpg",
        "right.jpeg": "rgb.jpg",
        "caption": "text.txt",
        "depth16.png": "depth.png",
    }
    assert member_names(["json"], fields) == {"json": "meta.json"}


@pytest.mark.parametrize(
    ("field", "extension", "member"),
    [
        ("points", "npy", "points.npy"),
        ("points", "lidar.NPZ", "points.npz"),
        ("rgb", "left.JPEG", "rgb.jpg"),
        ("rgb", "image", "rgb.jpg"),
        ("label", "cls", "label.txt"),
        ("own", "bin", "own.bin"),
    ],
)
def test_the_member_of_a_field(field: str, extension: str, member: str) -> None:
    assert member_of(field, extension) == member
