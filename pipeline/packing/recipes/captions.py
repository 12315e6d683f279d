"""Published datasets of photos with several captions each: Flickr8k and COCO."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.data.member_formats import member_name
from pipeline.packing.recipes.plan import Plan, Refusal, SourceSample, refusal, safe_key, spilled, stamp

Captions = Mapping[str, list[str]]


def flickr8k(source: Path) -> Plan:
    """Plan Flickr8k from `Flickr8k.token.txt`, `Flickr_8k.*Images.txt` and the photos.

    Lines of the first file are `photo.jpg#0<tab>caption`. The photos are in `Flicker8k_Dataset/` (sic) or `Images/`.

    Args:
        source: Folder with the extracted files.

    Raises:
        UserError: A text file is missing.
    """
    captions: dict[str, list[str]] = defaultdict(list)
    for line in _text(source / "Flickr8k.token.txt").split("\n"):
        photo, _, caption = line.partition("\t")
        if caption.strip():
            captions[photo.partition("#")[0]].append(" ".join(caption.split()))
    splits: dict[str, str] = {}
    for split, name in (("train", "train"), ("val", "dev"), ("test", "test")):
        splits |= dict.fromkeys(_text(source / f"Flickr_8k.{name}Images.txt").split(), split)
    folder = next((source / name for name in ("Flicker8k_Dataset", "Images") if (source / name).is_dir()), source)
    photos = ((photo, folder / photo, split) for photo, split in splits.items())
    return _plan("flickr8k", source, photos, captions)


def coco(source: Path) -> Plan:
    """Plan COCO from `annotations/captions_{train,val}YEAR.json`, `trainYEAR/` and `valYEAR/`.

    The validation split becomes the test split.

    Args:
        source: Folder with the extracted files.

    Raises:
        UserError: The annotations are missing or damaged.
    """
    files = sorted((source / "annotations").glob("captions_*.json"))
    if not files:
        raise UserError(
            f"{source}/annotations: no captions_train2017.json or similar found; extract the annotations there."
        )
    captions: dict[str, list[str]] = defaultdict(list)
    photos = []
    for path in files:
        part = path.stem.removeprefix("captions_")
        try:
            content = json.loads(_text(path))
            names = {image["id"]: image["file_name"] for image in content["images"]}
            for annotation in content["annotations"]:
                captions[names[annotation["image_id"]]].append(" ".join(annotation["caption"].split()))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a COCO caption file: {error!r}.") from None
        split = "train" if part.startswith("train") else "test"
        photos += [(name, source / part / name, split) for name in names.values()]
    return _plan("coco", source, photos, captions)


def _plan(name: str, source: Path, photos: Iterable[tuple[str, Path, str]], captions: Captions) -> Plan:
    """Plan photos, each given by name, path and split."""
    samples = spilled()
    refused: list[Refusal] = []
    for photo, path, split in photos:
        key, texts = safe_key(Path(photo).stem), captions.get(photo, [])
        try:
            if not texts:
                raise ValueError("the photo has no caption")
            size, mark = stamp([str(path)])
            files = {member_name("rgb", photo): str(path)}
        except (ValueError, OSError) as error:
            refused.append(refusal(key, photo, error))
            continue
        text = {"text.txt": "\n".join(texts)}
        samples.append(SourceSample(key, key, size, mark, files, text, split=split, source=photo))
    return Plan(name, name, {"source": str(source)}, samples, refused, split_rule="official")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); the file is part of the dataset.") from None
