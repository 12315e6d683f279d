"""Photos with several captions each, as their authors publish them: Flickr8k and COCO."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.errors import UserError
from pipeline.members import member_name
from pipeline.recipes import Plan, Refusal, Sample, refusal, safe_key, spilled, stamp

Captions = Mapping[str, list[str]]


def flickr8k(source: Path) -> Plan:
    """`Flickr8k.token.txt` (`photo.jpg#0<tab>caption`), the three `Flickr_8k.*Images.txt`, and the photos in
    `Flicker8k_Dataset/` (the authors' spelling) or `Images/`."""
    captions: dict[str, list[str]] = defaultdict(list)
    for line in _text(source / "Flickr8k.token.txt").splitlines():
        photo, _, caption = line.partition("\t")
        if caption.strip():
            captions[photo.partition("#")[0]].append(caption.strip())
    splits: dict[str, str] = {}
    for split, name in (("train", "train"), ("val", "dev"), ("test", "test")):
        splits |= dict.fromkeys(_text(source / f"Flickr_8k.{name}Images.txt").split(), split)
    folder = next((source / name for name in ("Flicker8k_Dataset", "Images") if (source / name).is_dir()), source)
    photos = ((photo, folder / photo, split) for photo, split in splits.items())
    return _plan("flickr8k", source, photos, captions)


def coco(source: Path) -> Plan:
    """`annotations/captions_{train,val}YEAR.json`, and photos in `trainYEAR/` and `valYEAR/`; val is the test split."""
    files = sorted((source / "annotations").glob("captions_*.json"))
    if not files:
        raise UserError(f"{source}/annotations: no captions_train2017.json or the like; unpack the annotations there.")
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
            raise UserError(f"{path}: not COCO's captions: {error!r}.") from None
        split = "train" if part.startswith("train") else "test"
        photos += [(name, source / part / name, split) for name in names.values()]
    return _plan("coco", source, photos, captions)


def _plan(name: str, source: Path, photos: Iterable[tuple[str, Path, str]], captions: Captions) -> Plan:
    """photos: name, path, split."""
    samples = spilled()
    refused: list[Refusal] = []
    for photo, path, split in photos:
        key, texts = safe_key(Path(photo).stem), captions.get(photo, [])
        try:
            if not texts:
                raise ValueError("there is no caption for it")
            size, mark = stamp([str(path)])
            files = {member_name("rgb", photo): str(path)}
        except (ValueError, OSError) as error:
            refused.append(refusal(key, photo, error))
            continue
        text = {"text.txt": "\n".join(texts)}
        samples.append(Sample(key, key, size, mark, files, text, split=split, source=photo))
    return Plan(name, name, {"source": str(source)}, samples, refused, split_rule="official")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); it is part of the set.") from None
