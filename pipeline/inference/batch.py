"""`wcord embed` and `wcord predict`: run a trained network over many inputs and write the results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.common.optional_deps import require_package
from pipeline.data.skipped import Skipped
from pipeline.inference.faiss_index import Index
from pipeline.inference.search import Role, sides
from pipeline.inference.student import Prediction, load


def write_embeddings(
    run: Path, places: Sequence[Path], out: Path | None, index: Path | None, by: Role, skipped: list[Skipped]
) -> int:
    """Embed inputs and write a file, an index, or both.

    Args:
        run: The run folder, or an exported student.
        places: Files, folders, packed datasets or shards.
        out: Pooled features as `.npy`, with the keys in `NAME.keys.json`, or as `.parquet` with columns `key` and
            `embedding`; None writes no file.
        index: Output folder for an index of unit vectors in the shared space of student and teacher; None writes no
            index.
        by: The network that embeds: student or teacher.
        skipped: Inputs that cannot be read are appended to this list.

    Returns:
        Number of embedded inputs.

    Raises:
        UserError: There is nothing to write or to read, the file name is wrong, or the run has no teacher.
    """
    if out is None and index is None:
        raise UserError("nothing to write: pass --out FILE.npy, --out FILE.parquet or --index FOLDER.")
    if out is not None and out.suffix not in (".npy", ".parquet"):
        raise UserError(f"--out {out}: the name must end with .npy or .parquet.")
    if index is not None:
        require_package("faiss", "search")
    alone = index is None and by == "student"
    own = {} if alone else sides(run)
    if not alone and by not in own:
        raise UserError(f"{run}: has no teacher to embed with. Use --by student.")
    keys, features = (load(run) if alone else own[by].network).embed(places, skipped)
    if not keys:
        raise UserError(f"none of the {len(skipped)} inputs can be read. The first: {skipped[0].message}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(out, keys, features)
    if index is not None:
        about = {"run": str(run.resolve()), "by": by, "modality": own[by].sees}
        Index.build(own[by].shared(features), keys, about).save(index)
    return len(keys)


def write_predictions(run: Path, places: Sequence[Path], out: Path | None, skipped: list[Skipped]) -> str:
    """Predict labels and probabilities.

    Args:
        run: The run folder, or an exported student.
        places: Files, folders, packed datasets or shards.
        out: A `.csv` or `.jsonl` file; None returns the CSV instead.
        skipped: Inputs that cannot be read are appended to this list.

    Returns:
        The CSV, or a line that states what was written.

    Raises:
        UserError: There is nothing to read, the file name is wrong, or the network has no classes.
    """
    if out is not None and out.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--out {out}: the name must end with .csv or .jsonl.")
    student = load(run)
    found = student.predict(places, skipped)
    if not found:
        raise UserError(f"none of the {len(skipped)} inputs can be read. The first: {skipped[0].message}")
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
        arrow, parquet = require_package("pyarrow", "search"), require_package("pyarrow.parquet", "search")
        flat = arrow.array(features.reshape(-1))
        vectors = arrow.FixedSizeListArray.from_arrays(flat, features.shape[1])
        parquet.write_table(arrow.table({"key": keys, "embedding": vectors}), file)
    write_atomic(out, file.getvalue())
