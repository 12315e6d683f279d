"""`wcord embed` and `wcord predict`: what a finished network says of many inputs, into files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.extras import need
from pipeline.index import Index
from pipeline.search import Role, sides
from pipeline.shards import write_atomic
from pipeline.skipped import Skipped
from pipeline.student import Prediction, load


def embed(
    run: Path, places: Sequence[Path], out: Path | None, index: Path | None, by: Role, skipped: list[Skipped]
) -> int:
    """Embed inputs into a file, an index, or both, and return how many there are.

    out: `.npy`, with the keys in `NAME.keys.json` beside it, or `.parquet` with columns `key` and `embedding`: the
    pooled features. index: a folder; what it holds are unit vectors in the space that student and teacher share.
    by: which of the two embeds. `skipped` collects what cannot be read.
    """
    if out is None and index is None:
        raise UserError("nothing to write: give --out FILE.npy, --out FILE.parquet or --index FOLDER.")
    if out is not None and out.suffix not in (".npy", ".parquet"):
        raise UserError(f"--out {out}: the name has to end with .npy or .parquet.")
    if index is not None:
        need("faiss", "search")
    alone = index is None and by == "student"
    own = {} if alone else sides(run)
    if not alone and by not in own:
        raise UserError(f"{run}: has no teacher to embed with.")
    keys, features = (load(run) if alone else own[by].network).embed(places, skipped)
    if not keys:
        raise UserError(f"none of {len(skipped)} inputs can be used; the first: {skipped[0].message}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(out, keys, features)
    if index is not None:
        about = {"run": str(run.resolve()), "by": by, "modality": own[by].sees}
        Index.build(own[by].shared(features), keys, about).save(index)
    return len(keys)


def predict(run: Path, places: Sequence[Path], out: Path | None, skipped: list[Skipped]) -> str:
    """Labels and probabilities of inputs, as CSV or as JSON lines; into `out`, or returned as CSV without it."""
    if out is not None and out.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--out {out}: the name has to end with .csv or .jsonl.")
    student = load(run)
    found = student.predict(places, skipped)
    if not found:
        raise UserError(f"none of {len(skipped)} inputs can be used; the first: {skipped[0].message}")
    if out is not None and out.suffix == ".jsonl":
        rows = ({"key": p.key, "label": p.label, "probabilities": p.probabilities} for p in found)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = _csv(found, student.classes or [])
    if out is None:
        return text
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text.encode())
    return f"{len(found)} predictions in {out}\n"


def _csv(found: Sequence[Prediction], classes: Sequence[str]) -> str:
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["key", "label", "probability", *classes])
    for one in found:
        odds = [f"{one.probabilities[name]:.4f}" for name in classes]
        rows.writerow([one.key, one.label, f"{one.probabilities[one.label]:.4f}", *odds])
    return file.getvalue()


def _write(out: Path, keys: list[str], features: np.ndarray) -> None:
    file = io.BytesIO()
    if out.suffix == ".npy":
        np.save(file, features, allow_pickle=False)
        write_atomic(out.with_suffix(".keys.json"), json.dumps(keys).encode())
    else:
        arrow, parquet = need("pyarrow", "search"), need("pyarrow.parquet", "search")
        flat = arrow.array(features.reshape(-1))
        vectors = arrow.FixedSizeListArray.from_arrays(flat, features.shape[1])
        parquet.write_table(arrow.table({"key": keys, "embedding": vectors}), file)
    write_atomic(out, file.getvalue())
