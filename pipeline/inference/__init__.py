"""Inference with a trained student: predict, embed, search, serve."""

from typing import TYPE_CHECKING

from pipeline.common.lazy import hand_on

if TYPE_CHECKING:
    from pipeline.inference.student import Prediction as Prediction
    from pipeline.inference.student import Student as Student

__getattr__ = hand_on(__name__, {"Prediction": "student", "Student": "student"})
