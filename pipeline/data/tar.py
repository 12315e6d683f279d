"""Reads the members of a tar sequentially and groups them into samples.

Several times faster than the standard library, which webdataset uses. Format: POSIX.1-1988 (ustar), with the long
names of POSIX.1-2001 (pax) and of GNU tar. Member names follow WebDataset.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Set
from functools import lru_cache
from typing import BinaryIO, TypeVar
from zlib import adler32

from pipeline.common.file_names import left_by

T = TypeVar("T")

UNNAMED, TWICE = "not named KEY.MEMBER", "twice in one sample"
"""What can be wrong with a member name."""

ABOUT = re.compile(r"__[^/]*__(/|$)")
"""Names of members that belong to the shard, not to a sample: `__meta__/…`. WebDataset skips them."""

BLOCK = 512
LARGEST_EXTENSION = 1 << 20  # bytes; a longer name or pax record is an attack or damage


@lru_cache(maxsize=4)  # a name is first selected, then grouped
def split_name(name: str) -> tuple[str, str] | None:
    """Split the name of a tar member as WebDataset does: `clip/0001.RGB.jpg` -> `clip/0001`, `rgb.jpg`.

    The key ends at the first dot after the last slash. The key of a hidden file in a folder (`clip/.rgb.jpg`) is the
    folder, `clip/`.

    Args:
        name: The name in the tar.

    Returns:
        The key, and the member in lower case; None if the name lacks one of them, in which case WebDataset skips it.

    Source: `base_plus_ext` and `group_by_keys` of https://github.com/webdataset/webdataset.
    """
    start = name.rfind("/") + 1
    dot = name.find(".", start)
    if dot < 0 or (dot == start and not _is_plain_folder(name[:dot])) or (name[:2] == "__" and ABOUT.match(name)):
        return None
    return name[:dot], name[dot + 1 :].lower()


def skip_unnamed(name: str, fault: str) -> None:
    """Handle a faulty member as WebDataset does: skip it if it does not belong to a sample.

    Args:
        name: The name in the tar.
        fault: UNNAMED or TWICE.

    Raises:
        ValueError: The fault is not UNNAMED.
    """
    if fault != UNNAMED:
        raise ValueError(f"{name}: {fault}")


def group_members(
    members: Iterable[tuple[str, T]], found: Callable[[str, str], None] = skip_unnamed
) -> Iterator[tuple[str, dict[str, T]]]:
    """Group consecutive members with the same key into samples.

    Args:
        members: Name and content of each member, in the order of the tar.
        found: Called with the name and the problem (UNNAMED or TWICE) of each faulty member, which is then skipped. A
            name that would be extracted outside the target folder, or of an operating-system file, counts as UNNAMED.

    Yields:
        Key of a sample, and member -> content.
    """
    key, sample = "", dict[str, T]()
    for name, content in members:
        own, member = split_name(name) or ("", "")
        if not member or left_by(name) or ("/" in own and _leads_out(own)):
            found(name, UNNAMED)
        elif own != key:
            if sample:
                yield key, sample
            key, sample = own, {member: content}
        elif member in sample:
            found(name, TWICE)
        else:
            sample[member] = content
    if sample:
        yield key, sample


def _is_plain_folder(name: str) -> bool:
    """Whether this is a folder whose last part has no dot, e.g. `a/b/`."""
    return name.endswith("/") and "." not in name[:-1].rpartition("/")[2]


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")


def in_members(members: Set[str]) -> Callable[[str], bool]:
    """Make a filter for `read_members` that selects members of samples.

    Args:
        members: The members, without keys.

    Returns:
        A function from the name in the tar to whether it is one of them.
    """

    def wanted(name: str) -> bool:
        parts = split_name(name)
        return parts is not None and parts[1] in members

    return wanted


def read_members(file: BinaryIO, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    """Read the regular files of a tar.

    Args:
        file: The tar, seekable.
        wanted: A function from the name to whether to read the content.

    Yields:
        Name and bytes of each regular file; None instead of bytes if it is not wanted.

    Raises:
        ValueError: The tar is damaged or truncated, has no end-of-archive marker, or has data after it, which tar
            tools would ignore.
    """
    name, size = "", -1  # from an extended header, for the next member
    while (header := _exactly(file, BLOCK)).strip(b"\0"):
        _verify(header)
        kind = header[156:157]
        length = _number(header[124:136]) if size < 0 else size
        if length >> 62:
            # Beyond the range of seek.
            raise ValueError(f"it is damaged: a member declares 2^{length.bit_length() - 1} bytes")
        padding = -length % BLOCK
        if kind in (b"x", b"L"):
            if length > LARGEST_EXTENSION:
                raise ValueError(f"it is damaged: an extended header declares {length} bytes")
            data = _exactly(file, length + padding)[:length]
            if kind == b"L":
                name = _text(data)
            else:
                name, size = _pax(data, name)
            continue
        name = name or _ustar_name(header)
        plain = kind in (b"0", b"\0")
        if plain and wanted(name):
            data = file.read(length)
            if len(data) < length:
                raise ValueError(f"{name} is truncated")
            yield name, data
            file.seek(padding, 1)
        elif kind not in b"123456":  # links, devices and folders have no data, regardless of the declared size
            file.seek(length + padding, 1)
            if plain:
                yield name, None
        name, size = "", -1
    while rest := file.read(1 << 16):
        if rest.strip(b"\0"):
            raise ValueError("it has data after its end-of-archive marker, such as another tar")


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError("it is truncated: the end-of-archive marker is missing")
    return data


def _verify(header: bytes) -> None:
    """Compare the checksum, the sum of all bytes, in which its own eight bytes count as spaces."""
    # Half of Adler-32 is the sum of the bytes modulo 65,521, ten times as fast as `sum`.
    total = (adler32(header, 0) & 0xFFFF) - sum(header[148:156]) + 8 * 32
    if (_number(header[148:156]) - total) % 65_521:
        raise ValueError("it is damaged: a header is invalid")


def is_header(block: bytes) -> bool:
    """Whether this is the header of a tar member, whose checksum is right."""
    try:
        _verify(block)
    except ValueError:
        return False
    return len(block) == BLOCK


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: too large for octal digits
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            raise ValueError("a negative size")
        return value
    digits = field.strip(b" \0")
    return int(digits, 8) if digits else 0


def _ustar_name(header: bytes) -> str:
    name = _text(header[:100])
    if header[345] and header[257:263] == b"ustar\0":
        return f"{_text(header[345:500])}/{name}"
    return name


def _pax(data: bytes, name: str) -> tuple[str, int]:
    """Read path and size from records `LENGTH KEY=VALUE`, each followed by a newline; -1 if there is no size."""
    size = -1
    while data:
        digits, _, _ = data.partition(b" ")
        end = int(digits)
        if not len(digits) < end <= len(data):
            raise ValueError("it is damaged: a pax header is invalid")
        key, _, value = data[len(digits) + 1 : end - 1].partition(b"=")
        if key == b"path":
            name = _text(value)
        elif key == b"size":
            size = int(value)
        data = data[end:]
    return name, size


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
