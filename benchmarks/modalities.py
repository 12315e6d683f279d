"""`make bench-modalities`: cost of a modality per sample, compared with the decoder of its format, on one core.

`by hand` computes the result of the whole modality with plain calls of OpenCV, NumPy and soundfile, without checks.
"""

from __future__ import annotations

import argparse
import io
import tempfile

import cv2
import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from benchmarks.losses import Work, medians
from modalities import RGB, Audio, Depth, Geometry, Modality, Text
from modalities.rgb import LUMA
from modalities.transformers_loader import import_transformers
from pipeline.common.host import keep_freed_memory

GEOMETRY = Geometry(0.1, 0.1, 0.9, 0.9, True)


def adapter(modality: Modality, data: bytes, size: int) -> Work:
    """Decode and augment, as the loader does in training."""
    rng = np.random.default_rng(0)
    return lambda: modality.augment(modality.decode(data, {}), GEOMETRY, size, rng)


def photo(width: int, height: int) -> np.ndarray:
    """Smooth colours with grain, so that the JPEG is about as large as that of a real photo."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (height // 16, width // 16, 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(float)
    return (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)


def rgb() -> dict[str, Work]:
    data = cv2.imencode(".jpg", photo(320, 240))[1].tobytes()
    array = np.frombuffer(data, np.uint8)
    return {
        "bare": lambda: cv2.imdecode(array, cv2.IMREAD_COLOR),
        "by hand": lambda: photo_by_hand(array, 224),
        "decode": lambda: RGB().decode(data, {}),
        "whole": adapter(RGB(), data, 224),
    }


def photo_by_hand(array: np.ndarray, size: int) -> torch.Tensor:
    image = cv2.cvtColor(cv2.imdecode(array, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    x0, y0, x1, y1 = GEOMETRY.box(*image.shape[:2])
    image = cv2.resize(cv2.flip(image[y0:y1, x0:x1], 1), (size, size), interpolation=cv2.INTER_LINEAR)
    mean = float(LUMA @ np.array(cv2.mean(image)[:3]))
    colours = np.hstack([1.1 * (0.9 * np.eye(3) + 0.1 * LUMA), np.full((3, 1), 0.1 * mean)])
    return torch.from_numpy(cv2.transform(image, colours)).permute(2, 0, 1)


def audio() -> dict[str, Work]:
    sound = np.random.default_rng(0).normal(0, 0.1, 160_000).cumsum() / 50
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(sound, -1, 1), 16_000, format="FLAC")
    data = buffer.getvalue()
    return {
        "bare": lambda: soundfile.read(io.BytesIO(data), dtype="float32"),
        "by hand": lambda: torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32")[0] * np.float32(1.1)),
        "decode": lambda: Audio(seconds=10.0).decode(data, {}),
        "whole": adapter(Audio(seconds=10.0), data, 64),
    }


def text() -> dict[str, Work]:
    """Compared with a byte-pair tokenizer of the tokenizers library, called directly."""
    captions = ["a small red ball lies on a wooden table", "a ball on a table"]
    data = "\n".join(captions).encode()
    own = Tokenizer(models.BPE(unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.train_from_iterator(captions, trainers.BpeTrainer(special_tokens=["[UNK]", "[PAD]"], show_progress=False))
    with tempfile.TemporaryDirectory() as folder:
        transformers = import_transformers()
        transformers.PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]").save_pretrained(folder)
        learnt = Text(tokenizer=folder)
        works = {
            "bare": lambda: own.encode(captions[0]).ids,
            "by hand": lambda: torch.tensor(own.encode(data.decode().splitlines()[0]).ids),
            "decode": lambda: learnt.decode(data, {}),
            "whole": adapter(learnt, data, 64),
            "whole, bytes": adapter(Text(), data, 64),
        }
        works["whole"]()  # reads the folder
    return works


def depth(kind: str) -> dict[str, Work]:
    metres = np.add.outer(np.linspace(1, 3, 480), np.linspace(0, 0.5, 640))
    data = cv2.imencode(".png", (metres * 1000).astype(np.uint16))[1].tobytes()
    array = np.frombuffer(data, np.uint8)
    modality = Depth(input=kind, near=0.5)  # type: ignore[arg-type]
    value = modality.decode(data, {})
    rng = np.random.default_rng(0)
    return {
        "bare": lambda: cv2.imdecode(array, cv2.IMREAD_UNCHANGED),
        "decode": lambda: modality.decode(data, {}),
        "augment": lambda: modality.augment(value, GEOMETRY, 480, rng),
        "whole": adapter(modality, data, 480),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds per measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_freed_memory()  # as training does
    rows = {
        "rgb, 320 x 240 JPEG to 224": rgb(),
        "audio, 10 s of 16 kHz FLAC": audio(),
        "text, two captions": text(),
        **{
            f"depth, 640 x 480 PNG to 480, {k}": depth(k) for k in ("depth", "depth+normals", "vertex", "hha", "points")
        },
    }
    for name, works in rows.items():
        took = medians(works, arguments.seconds)
        print(name)
        for work, seconds in took.items():
            beside = f", {seconds / took['by hand']:5.2f} of by hand" if "by hand" in took else ""
            print(f"  {work:14s} {1000 * seconds:8.3f} ms  {seconds / took['bare']:5.2f} of the bare decoder{beside}")


if __name__ == "__main__":
    main()
