"""Measures the quality of frozen features with classifiers on top of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

Scores = dict[str, float]


def accuracy(prediction: np.ndarray, label: np.ndarray) -> Scores:
    """Top-1 and balanced accuracy (mean over classes), without unlabelled samples.

    Args:
        prediction: Predicted class index `[N]`.
        label: Class index `[N]`; -1 if unknown.

    Returns:
        `top1` and `balanced` in [0, 1]; empty without labels.
    """
    known = label >= 0
    if not known.any():
        return {}
    right = prediction[known] == label[known]
    by_class = [right[label[known] == c].mean() for c in np.unique(label[known])]
    return {"top1": float(right.mean()), "balanced": float(np.mean(by_class))}


def never_predicted(counts: np.ndarray, classes: Sequence[str]) -> str:
    """A sentence on classes that occur in the test split but are never predicted; empty if there are none.

    Args:
        counts: Counts of (true class, predicted class) `[K, K]`.
        classes: Names of the K classes.
    """
    missing = [classes[int(i)] for i in np.flatnonzero(counts.sum(1).astype(bool) & ~counts.any(0))]
    if not missing:
        return ""
    names = ", ".join(name if name.isprintable() else repr(name)[1:-1] for name in missing[:10]) + (
        ", …" if len(missing) > 10 else ""
    )
    return f"The student never predicts {len(missing)} of the {len(classes)} classes: {names}."


def classify_frozen(
    train: np.ndarray, train_label: np.ndarray, test: np.ndarray, test_label: np.ndarray, neighbours: int
) -> Scores:
    """Accuracy of a linear probe and of cosine k-NN on features that are standardised by the training split.

    The probe is logistic regression with fixed regularisation (C = 0.1 on standardised features).

    Args:
        train: Features `[N, D]`.
        train_label: Class index `[N]`; -1 if unknown.
        test: Features `[M, D]`.
        test_label: Class index `[M]`; -1 if unknown.
        neighbours: k of k-NN.

    Returns:
        `probe` and `knn` in [0, 1]; empty with fewer than two classes.
    """
    from sklearn.linear_model import LogisticRegression

    known, known_test = train_label >= 0, test_label >= 0
    if not known.any() or not known_test.any() or len(np.unique(train_label[known])) < 2:
        return {}
    scale = Standard.of(train[known])
    x, y = scale(train[known]), train_label[known]
    x_test, y_test = scale(test[known_test]), test_label[known_test]
    probe = LogisticRegression(C=0.1, max_iter=1000).fit(x, y)
    return {"probe": float(probe.score(x_test, y_test)), "knn": _nearest(x, y, x_test, y_test, neighbours)}


def _nearest(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, neighbours: int) -> float:
    reference, label = F.normalize(torch.from_numpy(x)), torch.from_numpy(y)
    right = 0
    for query, truth in zip(torch.from_numpy(x_test).split(1024), torch.from_numpy(y_test).split(1024), strict=True):
        similarity, index = (F.normalize(query) @ reference.T).topk(min(neighbours, len(reference)), dim=1)
        votes = torch.zeros(len(query), int(label.max()) + 1)
        # The similarity breaks ties between classes with equal votes.
        votes.scatter_add_(1, label[index], 1 + 1e-3 * similarity)
        right += int((votes.argmax(1) == truth).sum())
    return right / len(y_test)


@dataclass(frozen=True)
class Standard:
    """Standardisation to zero mean and unit variance per dimension; constant dimensions become 0.

    Attributes:
        mean: `[D]`.
        scale: 1 / standard deviation, or 0, `[D]`.
    """

    mean: np.ndarray
    scale: np.ndarray

    @staticmethod
    def of(x: np.ndarray) -> Standard:
        """Fit to features `[N, D]`. Dimensions with almost no variance become 0."""
        std = x.std(0)
        scale = np.where(std > 1e-6 * max(float(std.max()), 1e-12), 1 / np.maximum(std, 1e-12), 0)
        return Standard(x.mean(0), scale)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return ((x - self.mean) * self.scale).astype(np.float32)
