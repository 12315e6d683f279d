"""Determines the format and completeness of an audio file from its header, without decoding it."""

from __future__ import annotations

import struct


def sound_kind(data: bytes) -> str:
    """The format of a complete audio file: `wav`, `flac`, `ogg` (Vorbis or Opus) or `mp3`.

    Truncation is not detected for FLAC, which decoders reject themselves, and for MP3 without a Xing header, which
    does not store the number of frames.

    Raises:
        ValueError: The file has another format, or is truncated (decoders would silently read the remaining part).
    """
    if data.startswith(b"RIFF") and data[8:12] == b"WAVE":
        _wav(data)
        return "wav"
    if data.startswith(b"fLaC"):
        if int.from_bytes(data[18:21], "big") >> 4 == 0:
            raise ValueError("the FLAC file has no sample rate")
        return "flac"
    if data.startswith(b"OggS"):
        _ogg(data)
        return "ogg"
    start = data.lstrip(b"\0")[:3]
    if start == b"ID3" or (start[:1] == b"\xff" and start[1:2] >= b"\xe0"):
        _mp3(data)
        return "mp3"
    raise ValueError(f"not a WAV, FLAC, OGG or MP3 file (it begins with {data[:8]!r}){cure(data)}")


def cure(data: bytes) -> str:
    """How to convert a file that cannot be read, to follow the message; empty if it is damaged or no audio."""
    return "; convert it: ffmpeg -i sound.m4a sound.flac" if data[4:8] == b"ftyp" else ""


UNKNOWN = (0x7FFFF000, 0x80000000, 0xFFFFFFFF)
"""Lengths that programs write which do not know the length, since they write to a pipe: SoX, arecord, ffmpeg."""


def with_length(data: bytes) -> bytes:
    """A WAV with the length of its audio, if it was written to a pipe and has 0 instead; any other file unchanged."""
    try:
        at = _wav(data) if data.startswith(b"RIFF") and data[8:12] == b"WAVE" else len(data)
    except ValueError:  # the decoder says what is wrong
        return data
    known = data[at + 4 : at + 8] != bytes(4)
    return data if known else data[: at + 4] + (len(data) - at - 8).to_bytes(4, "little") + data[at + 8 :]


def _wav(data: bytes) -> int:
    """Offset of the chunk of audio data, which must follow a format chunk and have the declared length.

    A length of 0 is unknown if the whole file ends there by its header, or has no known length either.
    """
    at, seen, whole = 12, False, int.from_bytes(data[4:8], "little")
    while at + 8 <= len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        rest = len(data) - at - 8
        if name == b"fmt ":
            seen = length >= 16 and all(struct.unpack("<HI", data[at + 10 : at + 16].ljust(6, b"\0")))
        elif name == b"data":
            if not seen:
                raise ValueError("the WAV file has no audio format")
            if length == 0 and (whole <= at or whole in UNKNOWN):
                length = 0xFFFFFFFF
            if length > rest and length not in UNKNOWN:
                raise ValueError(f"the WAV file is truncated: it has {rest} of {length} bytes of audio; copy it again")
            if min(length, rest) == 0:
                raise ValueError("the WAV file has no samples")
            return at
        at += 8 + length + length % 2
    raise ValueError("the WAV file has no samples")


def _ogg(data: bytes) -> None:
    """The last page must have the end-of-stream flag (RFC 3533) and the length of its segment table."""
    at = data.rfind(b"OggS\0")
    table = data[at + 27 : at + 27 + data[at + 26]] if 0 <= at < len(data) - 27 else b""
    whole = table and len(data) >= at + 27 + len(table) + sum(table)
    if not (whole and data[at + 5] & 4):
        raise ValueError(f"the OGG file is truncated: its last page is missing after {len(data)} bytes; copy it again")


def _mp3(data: bytes) -> None:
    """The Xing header stores the number of bytes of all frames, including its own."""
    at, flags, counts = _xing(data)
    if flags & 2 and len(data) - at < int.from_bytes(counts[4 * (flags & 1) :][:4], "big"):
        raise ValueError(f"the MP3 is truncated: its header declares more than its {len(data)} bytes; copy it again")


def _xing(data: bytes) -> tuple[int, int, bytes]:
    """Offset of the first MP3 frame, and flags and counts of its Xing (or Info) header; flags are 0 without one."""
    at = len(data) - len(data.lstrip(b"\0"))
    if data[at : at + 3] == b"ID3":
        seven = data[at + 6 : at + 10]  # 7 bits per byte
        at += 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(seven)))
    at = max(data.find(b"\xff", at), 0)
    found = max(data.find(b"Xing", at, at + 44), data.find(b"Info", at, at + 44))
    return at, int.from_bytes(data[found + 4 : found + 8], "big") if found > 0 else 0, data[found + 8 : found + 16]


def knows_its_length(data: bytes) -> bool:
    """Whether the header contains the number of samples. Without it, as in some MP3 files, decoders guess."""
    return sound_kind(data) != "mp3" or bool(_xing(data)[1] & 1)
