"""Compares the preprocessing script of an outside modality with the modality, on samples of the dataset."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.decoding import member_of
from pipeline.data.skipped import SampleError
from pipeline.data.source import Source
from pipeline.data.views import View, collate_view, required_members
from pipeline.export.onnx import TOLERANCE, Arrays

COMPARED = 8
"""Number of samples."""
PACKAGES = ("wcord", "pipeline", "modalities", "losses")


def script_fault(script: Path, view: View, source: Source) -> str | None:
    """Say why a script does not do what the modality does in evaluation.

    Args:
        script: The script in the exported folder, next to `preprocessing.json`.
        view: The view of the network.
        source: The split of the samples.

    Returns:
        A part of a sentence after "the script"; None if it agrees.
    """
    files = list(islice(_files(view, source), COMPARED))
    if not files:
        return "cannot be compared, since no sample can be decoded without its meta.json"
    own = {*PACKAGES, type(view.modality).__module__.partition(".")[0]}
    try:
        if absent := sorted(_imports(script.read_text()) & own):
            return f"imports {absent[0]}, which is not in the exported folder"
        namespace = runpy.run_path(str(script))
        if missing := [name for name in ("read", "batch") if name not in namespace]:
            return f"has no function {missing[0]}"
        found = namespace["batch"]([namespace["read"](data) for data, _ in files])
    except Exception as error:  # of the author's own code
        return f"raised {type(error).__name__}: {error}"
    batch = collate_view(view, [value for _, value in files])
    return _difference(found, batch if isinstance(batch, Mapping) else {view.modality.name: batch})


def _imports(code: str) -> set[str]:
    """The top-level packages that a script imports."""
    names = set[str]()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def _files(view: View, source: Source) -> Iterator[tuple[bytes, Any]]:
    """Bytes and input of the samples that can be decoded without their `meta.json`, as those of single files are."""
    members = required_members(view)
    for raw in source.read(members):
        with suppress(ValueError, SampleError):
            sample = source.complete(raw, members)
            if (member := member_of(view.modality, sample)) is not None:
                yield sample[member], view.whole(view.modality.decode(sample[member], {}))


def _difference(found: Arrays, wanted: Mapping[str, Any]) -> str | None:
    if list(found) != list(wanted):
        return f"returns {', '.join(found) or 'nothing'}, the modality {', '.join(wanted)}"
    for name, tensor in wanted.items():
        mine, value = np.asarray(found[name]), tensor.numpy()
        if (mine.dtype, mine.shape) != (value.dtype, value.shape):
            return (
                f"returns {name} as {mine.dtype} {list(mine.shape)}, the modality as {value.dtype} {list(value.shape)}"
            )
        scale = max(float(np.abs(value).max(initial=0)), 1.0)
        apart = float(np.abs(mine.astype(float) - value.astype(float)).max(initial=0)) / scale
        if not apart <= TOLERANCE:
            return f"returns a {name} that differs from the modality's by {apart:.1e}, more than {TOLERANCE:.0e}"
    return None
