"""A network as one graph of tensors: for PyTorch without this program (`.pt2`), for ONNX, and in 8 bits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.extras import need
from pipeline.network import Joint, Network

TOLERANCE = 1e-4
"""By how much ONNX may differ from PyTorch, in units of the largest value where that is above 1."""

Arrays = dict[str, np.ndarray]


class Graph(nn.Module):
    """`graph(*tensors) -> (features [B, D], logits [B, K])`, or the features alone of a network without classes.

    example: a batch as the network reads it. names: of the tensors in it: the modality's, or of a modality that reads
    several, theirs; in a joint network with the modality's in front.
    """

    def __init__(self, network: Network | Joint, example: Any) -> None:
        super().__init__()
        self.network = network.eval()
        self.parts = [network] if isinstance(network, Network) else network._networks()
        batches = self._read(example)
        self.keys = [list(batch) if isinstance(batch, Mapping) else [] for batch in batches]
        self.names = [
            (f"{part.modality.name}_{key}" if len(batches) > 1 else key) if key else part.modality.name
            for part, keys in zip(self.parts, self.keys, strict=True)
            for key in keys or [""]
        ]
        self.outputs = ["features", "logits"] if network.classes else ["features"]

    def tensors(self, batch: Any) -> tuple[Tensor, ...]:
        """A batch as the network reads it, flat, in the order of `names`."""
        return tuple(t for part in self._read(batch) for t in (part.values() if isinstance(part, Mapping) else [part]))

    def _read(self, batch: Any) -> list[Any]:
        batches = [batch] if isinstance(self.network, Network) else batch
        return [part.encoder.extract_features(own) for part, own in zip(self.parts, batches, strict=True)]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        left = iter(tensors)
        batches = [{key: next(left) for key in keys} if keys else next(left) for keys in self.keys]
        out = self.network(batches[0] if isinstance(self.network, Network) else tuple(batches))
        return (out.pooled.float(), out.logits.float()) if "logits" in self.outputs else (out.pooled.float(),)


def trace(graph: Graph, example: Any) -> torch.export.ExportedProgram:
    """The graph as a program: any number of samples a batch, and any length of what has one.

    Raises UserError for a network that is more than tensors, such as one that calls NumPy.
    """
    tensors, auto = graph.tensors(example), torch.export.Dim.AUTO
    several = [bool(keys) for keys in graph.keys for _ in keys or [""]]
    shapes = tuple(
        {0: torch.export.Dim.DYNAMIC} | ({1: auto} if long and t.ndim > 1 else {})
        for t, long in zip(tensors, several, strict=True)
    )
    frozen = graph.cpu().requires_grad_(False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel has no counterpart in ONNX
    try:
        with quiet():
            return torch.export.export(frozen, tensors, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # whatever a foreign network raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"this network cannot be written as a graph ({type(error).__name__}: {reason})") from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def write_onnx(program: torch.export.ExportedProgram, graph: Graph, path: Path) -> None:
    """Write the program as ONNX; its batch, and the lengths of what has one, are free."""
    need("onnxscript", "export")
    with quiet():
        torch.onnx.export(
            program,
            f=str(path),
            dynamo=True,
            input_names=graph.names,
            output_names=graph.outputs,
            external_data=False,
            verbose=False,
        )


def session(path: Path) -> Any:
    """An ONNX Runtime session of a file, on the CPU, in one thread."""
    runtime = need("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feed(graph: Graph, batch: Any) -> Arrays:
    """A batch as ONNX Runtime takes it."""
    return {name: t.numpy() for name, t in zip(graph.names, graph.tensors(batch), strict=True)}


@torch.no_grad()
def difference(graph: Graph, path: Path, batches: Sequence[Any]) -> float:
    """The largest difference between PyTorch and an ONNX file, relative where values are above 1."""
    runtime, worst = session(path), 0.0
    for batch in batches:
        for found, tensor in zip(runtime.run(None, feed(graph, batch)), graph(*graph.tensors(batch)), strict=True):
            wanted = tensor.numpy()
            worst = max(worst, float(np.abs(found - wanted).max()) / max(float(np.abs(wanted).max()), 1.0))
    return worst


def quantise(path: Path, out: Path, graph: Graph, batches: Sequence[Any]) -> str:
    """Write an ONNX file in 8 bits, and say how it was done.

    Where most of the work is convolutions, their inputs' ranges are taken from `batches`; matrix products, as in
    transformers, take the range of each input as it comes.
    """
    need("onnxruntime", "export")
    onnx = need("onnx", "export")
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    kinds = [node.op_type for node in onnx.load(path).graph.node]
    if kinds.count("Conv") < kinds.count("MatMul") + kinds.count("Gemm"):
        with quiet():
            quantize_dynamic(path, out, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
        return "weights of matrix products in 8 bits, ranges of their inputs as they come"

    class Reader(CalibrationDataReader):  # type: ignore[misc, valid-type]
        left = iter([feed(graph, batch) for batch in batches])

        def get_next(self) -> Arrays | None:
            return next(self.left, None)

    with quiet():
        quantize_static(
            path,
            out,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
        )
    return f"convolutions in 8 bits, ranges from {sum(len(b) for b in map(_first, batches))} training samples"


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' remarks about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first(batch: Any) -> Tensor:
    part = batch[0] if isinstance(batch, tuple) else batch
    return next(iter(part.values())) if isinstance(part, Mapping) else part
