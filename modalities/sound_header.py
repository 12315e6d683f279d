"""What a sound file says of its own kind and length, before anything is decoded."""

from __future__ import annotations

import struct


def sound_kind(data: bytes) -> str:
    """`wav`, `flac`, `ogg` or `mp3`: the kind of a sound file that is there to its end.

    Not seen: a cut FLAC, which decoders refuse, and a cut MP3 without a Xing header, which does not count its frames.
    Raises ValueError for other kinds, and for a file cut short (decoders play what there is, silently).
    """
    if data.startswith(b"RIFF") and data[8:12] == b"WAVE":
        _wav(data)
        return "wav"
    if data.startswith(b"fLaC"):
        if int.from_bytes(data[18:21], "big") >> 4 == 0:
            raise ValueError("a FLAC file without a sample rate")
        return "flac"
    if data.startswith(b"OggS"):
        _ogg(data)
        return "ogg"
    start = data.lstrip(b"\0")[:3]
    if start == b"ID3" or (start[:1] == b"\xff" and start[1:2] >= b"\xe0"):
        _mp3(data)
        return "mp3"
    raise ValueError(f"neither WAV, FLAC, OGG nor MP3 (begins with {data[:8]!r})")


def _wav(data: bytes) -> None:
    """Walk the chunks of a RIFF to the sound: a format before it, and as many bytes as it announces."""
    at, seen = 12, False
    while at + 8 <= len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        rest = len(data) - at - 8
        if name == b"fmt ":
            seen = length >= 16 and all(struct.unpack("<HI", data[at + 10 : at + 16].ljust(6, b"\0")))
        elif name == b"data":
            if not seen:
                raise ValueError("a WAV file without a sound format")
            if length > rest and length != 0xFFFFFFFF:  # written to a pipe: length unknown
                raise ValueError(
                    f"the WAV file is truncated: {rest} of {length} bytes of sound are there; copy it again"
                )
            if min(length, rest) == 0:
                raise ValueError("a WAV file without sound: it has no samples")
            return
        at += 8 + length + length % 2
    raise ValueError("a WAV file without sound: it has no samples")


def _ogg(data: bytes) -> None:
    """The last page has to say that it is the last (RFC 3533) and be as long as its table of segments says."""
    at = data.rfind(b"OggS\0")
    table = data[at + 27 : at + 27 + data[at + 26]] if 0 <= at < len(data) - 27 else b""
    whole = table and len(data) >= at + 27 + len(table) + sum(table)
    if not (whole and data[at + 5] & 4):
        raise ValueError(f"the OGG file is truncated: its last page is missing after {len(data)} bytes; copy it again")


def _mp3(data: bytes) -> None:
    """The Xing header counts the bytes of all frames, itself included."""
    at, flags, counts = _xing(data)
    if flags & 2 and len(data) - at < int.from_bytes(counts[4 * (flags & 1) :][:4], "big"):
        raise ValueError(f"the MP3 is truncated: its header counts more than its {len(data)} bytes; copy it again")


def _xing(data: bytes) -> tuple[int, int, bytes]:
    """Where an MP3's first frame begins, and the flags and counts of the Xing (or Info) header in it; 0 without one."""
    at = len(data) - len(data.lstrip(b"\0"))
    if data[at : at + 3] == b"ID3":
        seven = data[at + 6 : at + 10]  # bits of each byte
        at += 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(seven)))
    at = max(data.find(b"\xff", at), 0)
    found = max(data.find(b"Xing", at, at + 44), data.find(b"Info", at, at + 44))
    return at, int.from_bytes(data[found + 4 : found + 8], "big") if found > 0 else 0, data[found + 8 : found + 16]


def knows_its_length(data: bytes) -> bool:
    """Whether a sound file says how many samples it has; of an MP3 whose header does not, decoders guess."""
    return sound_kind(data) != "mp3" or bool(_xing(data)[1] & 1)
