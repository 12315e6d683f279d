"""Exports a network as a graph of tensor operations: PyTorch (`.pt2`), ONNX fp32 and ONNX int8."""

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

from pipeline.common.errors import UserError
from pipeline.common.optional_deps import require_package
from pipeline.models.network import Joint, Network

TOLERANCE = 1e-4
"""Maximum difference between ONNX and PyTorch, relative to the largest value if that is above 1."""

Arrays = dict[str, np.ndarray]


class Graph(nn.Module):
    """`graph(*tensors) -> (features [B, D], logits [B, K])`; only the features if the network has no classes.

    Args:
        network: The network.
        example: A batch in the format of the network.

    Attributes:
        names: Names of the input tensors: the name of the modality, or its keys if it has several tensors. In a joint
            network, keys are prefixed with the modality.
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
        """Flatten a batch to tensors in the order of `names`."""
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
    """Export the graph as a program with dynamic batch size and, for sequences, dynamic length.

    Args:
        graph: The graph.
        example: A batch in the format of the network.

    Raises:
        UserError: The network does not consist of tensor operations only, e.g. it calls NumPy.
    """
    tensors, auto = graph.tensors(example), torch.export.Dim.AUTO
    several = [bool(keys) for keys in graph.keys for _ in keys or [""]]
    shapes = tuple(
        {0: torch.export.Dim.DYNAMIC} | ({1: auto} if long and t.ndim > 1 else {})
        for t, long in zip(tensors, several, strict=True)
    )
    frozen = graph.cpu().requires_grad_(False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # ONNX has no equivalent of its fused kernel
    try:
        with quiet():
            return torch.export.export(frozen, tensors, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:  # third-party networks may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"this network cannot be exported as a graph ({type(error).__name__}: {reason})") from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def write_onnx(program: torch.export.ExportedProgram, graph: Graph, path: Path) -> None:
    """Write the program as ONNX with dynamic batch size and lengths."""
    require_package("onnxscript", "export")
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
    """Open an ONNX file with ONNX Runtime, on the CPU with one thread."""
    runtime = require_package("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feed(graph: Graph, batch: Any) -> Arrays:
    """Convert a batch to the inputs of ONNX Runtime."""
    return {name: t.numpy() for name, t in zip(graph.names, graph.tensors(batch), strict=True)}


@torch.no_grad()
def difference(graph: Graph, path: Path, batches: Sequence[Any]) -> float:
    """Measure the largest difference between PyTorch and an ONNX file, relative to values above 1.

    Args:
        graph: The graph.
        path: The ONNX file.
        batches: Batches in the format of the network.
    """
    runtime, worst = session(path), 0.0
    for batch in batches:
        for found, tensor in zip(runtime.run(None, feed(graph, batch)), graph(*graph.tensors(batch)), strict=True):
            wanted = tensor.numpy()
            worst = max(worst, float(np.abs(found - wanted).max()) / max(float(np.abs(wanted).max()), 1.0))
    return worst


def quantise(path: Path, out: Path, graph: Graph, batches: Sequence[Any]) -> str:
    """Quantise an ONNX file to int8.

    Networks that are mostly convolutions use static quantisation, calibrated on `batches`. Networks that are mostly
    matrix products, such as transformers, use dynamic quantisation. Weights have 7 bits: with 8, sums of products
    overflow on x86 CPUs without VNNI instructions (onnxruntime.ai/docs/performance/model-optimizations/quantization).

    Args:
        path: The fp32 file.
        out: The int8 file.
        graph: The graph.
        batches: Training batches for calibration.

    Returns:
        The method, as text.
    """
    require_package("onnxruntime", "export")
    onnx = require_package("onnx", "export")
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    kinds = [node.op_type for node in onnx.load(path).graph.node]
    if kinds.count("Conv") < kinds.count("MatMul") + kinds.count("Gemm"):
        with quiet():
            quantize_dynamic(path, out, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True)
        return "dynamic quantisation of matrix products"

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
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
        )
    count = sum(len(b) for b in map(_first, batches))
    return f"static quantisation of convolutions, calibrated on {count} training samples"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence log messages and warnings of the exporters."""
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
