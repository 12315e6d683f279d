"""Oracle: the standard library's writer and reader."""

from __future__ import annotations

import io
import tarfile

import pytest

from pipeline.tar import read_members, write_members

FILES = {
    "a.rgb.jpg": b"x" * 1000,
    "a.empty": b"",
    "b" * 120 + "/c.depth.png": bytes(range(256)) * 8,
    "long/" * 60 + "d.json": b"{}",
    "ünïcode.txt": b"512" * 512,
    "last.txt": b"z" * 512,
}


def packed(kind: int, names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(FILES[name]), 1.5 if kind == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(FILES[name]))
        for kind_of_link in (tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("link")
            info.type, info.linkname = kind_of_link, "last.txt"
            tar.addfile(info)
        info = tarfile.TarInfo("after.txt")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"end"))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_what_the_standard_library_wrote(kind: int) -> None:
    names = [n for n in FILES if kind != tarfile.USTAR_FORMAT or len(n) < 200]
    data = packed(kind, names)
    assert dict(read_members(io.BytesIO(data), lambda name: True)) == {n: FILES[n] for n in names} | {
        "after.txt": b"end"
    }
    some = dict(read_members(io.BytesIO(data), lambda name: name.endswith(".txt")))
    assert {name for name, content in some.items() if content is None} == set(names) - {"ünïcode.txt", "last.txt"}
    assert {name: content for name, content in some.items() if content is not None} == {
        "ünïcode.txt": FILES["ünïcode.txt"],
        "last.txt": FILES["last.txt"],
        "after.txt": b"end",
    }


def test_sizes_beyond_octal_digits_are_read() -> None:
    info = tarfile.TarInfo("big.bin")
    info.size = 1 << 36
    header = info.tobuf(format=tarfile.GNU_FORMAT)
    with pytest.raises(ValueError, match=r"big\.bin is cut short"):
        list(read_members(io.BytesIO(header + b"abc"), lambda name: True))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_anywhere_is_refused(kind: int) -> None:
    data = packed(kind, ["a.rgb.jpg", "last.txt"])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    end = members[-1].offset_data + 512
    for cut in range(1, end, 97):
        with pytest.raises(ValueError, match="cut short"):
            list(read_members(io.BytesIO(data[:cut]), lambda name: True))


def test_a_damaged_header_is_refused() -> None:
    data = bytearray(packed(tarfile.USTAR_FORMAT, ["a.rgb.jpg", "last.txt"]))
    for place in (0, 130, 150, 156, 345, 400):
        spoilt = data.copy()
        spoilt[place] ^= 1
        with pytest.raises(ValueError, match=r"no header|invalid literal"):
            list(read_members(io.BytesIO(spoilt), lambda name: True))


@pytest.mark.parametrize("count", range(5))
def test_writes_the_bytes_of_the_standard_library(count: int) -> None:
    files = [("a.rgb.jpg", b"x" * 1000), ("ü" * 50, b""), ("b.\udcff", b"z" * 512), ("c" * 100, b"y" * 9000)][:count]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert b"".join(write_members(files)) == buffer.getvalue()


def test_a_name_that_does_not_fit_is_not_cut() -> None:
    with pytest.raises(ValueError, match="too long"):
        list(write_members([("ü" * 51, b"")]))


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("wanted", [True, False])
def test_sizes_beyond_any_file_are_refused(kind: int, wanted: bool) -> None:
    info = tarfile.TarInfo("big.bin")
    info.size = 1 << 80
    with pytest.raises(ValueError, match=r"a member of 2\^80 bytes"):
        list(read_members(io.BytesIO(info.tobuf(format=kind)), lambda name: wanted))
