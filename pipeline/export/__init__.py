"""Exports a student for use without wcord: ONNX, PyTorch, a model card and standalone scripts."""

from typing import TYPE_CHECKING

from pipeline.common.lazy import hand_on

if TYPE_CHECKING:
    from pipeline.export.bundle import export as export

__getattr__ = hand_on(__name__, {"export": "bundle"})
