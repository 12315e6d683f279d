"""The space in which a student and its teacher are compared: the teacher's features, and how a student reaches them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.errors import UserError
from pipeline.probes import Standard
from pipeline.shards import write_atomic

SPACE = "space.safetensors"


@dataclass(frozen=True)
class Space:
    """Both sides standardised by the training split; ridge regression `weights [D_S, D_T]` takes the student across.

    So a student is asked what its features hold of the teacher's, whatever losses it was trained with.
    """

    student: Standard
    teacher: Standard
    weights: np.ndarray

    @staticmethod
    def fit(student: np.ndarray, teacher: np.ndarray) -> Space:
        """From features of the same samples, `student [N, D_S]` and `teacher [N, D_T]`."""
        own, target = Standard.of(student), Standard.of(teacher)
        x, y = (torch.from_numpy(scale(side)).double() for scale, side in ((own, student), (target, teacher)))
        ridge = 0.1 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
        return Space(own, target, torch.linalg.solve(x.T @ x + ridge, x.T @ y).numpy())

    def of_student(self, x: np.ndarray) -> np.ndarray:
        """Student features `[M, D_S]` as fp32 `[M, D_T]`."""
        across: np.ndarray = (self.student(x).astype(np.float64) @ self.weights).astype(np.float32)
        return across

    def of_teacher(self, x: np.ndarray) -> np.ndarray:
        """Teacher features `[M, D_T]` as fp32 `[M, D_T]`."""
        return self.teacher(x)

    def save(self, path: Path) -> None:
        """Write it as safetensors, for `load_space`."""
        sides = {"student": self.student, "teacher": self.teacher}
        arrays = {f"{name}.{part}": getattr(side, part) for name, side in sides.items() for part in ("mean", "scale")}
        write_atomic(path, save({**arrays, "weights": np.ascontiguousarray(self.weights)}))


def load_space(folder: Path) -> Space | None:
    """The space that lies in the folder of a student; None if there is none, UserError if it is damaged."""
    path = folder / SPACE
    if not path.is_file():
        return None
    try:
        arrays = load(path.read_bytes())
        sides = [Standard(arrays[f"{name}.mean"], arrays[f"{name}.scale"]) for name in ("student", "teacher")]
        return Space(sides[0], sides[1], arrays["weights"])
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error}); run `wcord evaluate` again.") from None
