"""How similar anchored transport is to feature regression: cosine similarity of their gradients.

    python -m benchmarks.anchor_gradient

The student's features are the teacher's features mixed with noise, such that the cosine similarity of a true pair is
about `alignment`. The gradient of `LocalTransport` with respect to them is compared with the gradient for `anchor: 0`,
which is feature regression.
"""

from __future__ import annotations

import argparse
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from losses import Dims, Features, LocalTransport

ALIGNMENTS = {"aligned": 0.9, "half": 0.5, "weak": 0.2}
ANCHORS = (0.2, 0.5, 0.8, 1.0)
DIMS, COPIES = (16, 64), (1, 4)


def teacher_features(batch: int, dim: int, copies: int) -> Tensor:
    """Standard normal `[batch, dim]`; groups of `copies` samples share 0.9 of their direction (near-duplicates)."""
    scene = torch.randn(-(-batch // copies), dim).repeat_interleave(copies, 0)[:batch]
    return scene if copies == 1 else 0.9 * scene + (1 - 0.9**2) ** 0.5 * torch.randn(batch, dim)


def gradient(anchor: float, student: Tensor, teacher: Tensor) -> tuple[Tensor, float]:
    """The gradient of the loss with respect to the student's features, flattened, and the plan's mass on true pairs."""
    loss = LocalTransport(Dims(student.shape[1]), Dims(teacher.shape[1]), space="raw", anchor=anchor)
    x = student.clone().requires_grad_()
    output = loss.with_metrics(Features(x), Features(teacher), {})
    (found,) = torch.autograd.grad(output.loss, x)
    return found.flatten(), float(output.metrics()["plan_diagonal"])


def compared(anchor: float, alignment: float, copies: int, batch: int, dim: int, seeds: int) -> tuple[float, float]:
    """Mean cosine similarity of the gradients for `anchor` and for 0, and mean mass on the true pairs."""
    cosines, diagonals = [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        teacher = teacher_features(batch, dim, copies)
        student = alignment * teacher + (1 - alignment**2) ** 0.5 * torch.randn(batch, dim)
        found, diagonal = gradient(anchor, student, teacher)
        cosines.append(float(F.cosine_similarity(found, gradient(0.0, student, teacher)[0], dim=0)))
        diagonals.append(diagonal)
    return sum(cosines) / seeds, sum(diagonals) / seeds


def main() -> None:
    """Print a line for each anchor: cosine similarity and, in brackets, the mass on the true pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    print(f"Batch {arguments.batch}, epsilon 0.1, means of {arguments.seeds} seeds.")
    print("Cosine between the gradients of an anchor and of `anchor: 0` (the plan's mass on the true pairs):")
    for dim, copies in product(DIMS, COPIES):
        title = f"{dim} dimensions, " + ("independent samples" if copies == 1 else f"{copies} near-duplicates each")
        print(f"\n{title:38s}" + "".join(f"{f'{name} ({x})':>16s}" for name, x in ALIGNMENTS.items()))
        for anchor in ANCHORS:
            cells = (compared(anchor, x, copies, dim=dim, **vars(arguments)) for x in ALIGNMENTS.values())
            print(f"  anchor {anchor:<29g}" + "".join(f"{cosine:9.3f} ({mass:.2f})" for cosine, mass in cells))


if __name__ == "__main__":
    main()
