"""The shared space of student and teacher: the teacher's features, and a linear map from the student to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, save

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomic
from pipeline.evaluate.probes import Standard
from pipeline.models.description import SPACE


@dataclass(frozen=True)
class Space:
    """Standardisation of both sides, and ridge regression from the student to the teacher.

    It measures how much of the teacher's features can be recovered from the student's, whatever the training loss.

    Attributes:
        student: Standardisation of the student, fitted on the training split.
        teacher: Standardisation of the teacher.
        weights: Regression weights, `[D_S, D_T]`.
    """

    student: Standard
    teacher: Standard
    weights: np.ndarray

    @staticmethod
    def fit(student: np.ndarray, teacher: np.ndarray) -> Space:
        """Fit to features of the same samples.

        Args:
            student: `[N, D_S]`.
            teacher: `[N, D_T]`.
        """
        own, target = Standard.of(student), Standard.of(teacher)
        x, y = (torch.from_numpy(scale(side)).double() for scale, side in ((own, student), (target, teacher)))
        ridge = 0.1 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
        return Space(own, target, torch.linalg.solve(x.T @ x + ridge, x.T @ y).numpy())

    def of_student(self, x: np.ndarray) -> np.ndarray:
        """Map student features `[M, D_S]` to the space, fp32 `[M, D_T]`."""
        across: np.ndarray = (self.student(x).astype(np.float64) @ self.weights).astype(np.float32)
        return across

    def of_teacher(self, x: np.ndarray) -> np.ndarray:
        """Map teacher features `[M, D_T]` to the space, fp32 `[M, D_T]`."""
        return self.teacher(x)

    def save(self, path: Path) -> None:
        """Write the space as safetensors; `load_space` reads it."""
        sides = {"student": self.student, "teacher": self.teacher}
        arrays = {f"{name}.{part}": getattr(side, part) for name, side in sides.items() for part in ("mean", "scale")}
        write_atomic(path, save({**arrays, "weights": np.ascontiguousarray(self.weights)}))


def load_space(folder: Path) -> Space | None:
    """Read the shared space in the folder of a student; None if there is none.

    Raises:
        UserError: The file is damaged.
    """
    path = folder / SPACE
    if not path.is_file():
        return None
    try:
        arrays = load(path.read_bytes())
        sides = [Standard(arrays[f"{name}.mean"], arrays[f"{name}.scale"]) for name in ("student", "teacher")]
        space = Space(sides[0], sides[1], arrays["weights"])
    except Exception as error:  # safetensors raises what it likes for a damaged header
        raise UserError(f"{path}: damaged ({error}); run `wcord evaluate` again.") from None
    shapes = [(side.mean.shape, side.scale.shape) for side in sides]
    if shapes != [((size,), (size,)) for size in space.weights.shape]:
        raise UserError(f"{path}: damaged (its arrays do not fit together); run `wcord evaluate` again.")
    return space
