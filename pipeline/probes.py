"""What frozen features are worth: classifiers on top of them, and retrieval across two networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Scores = dict[str, float]


def accuracy(prediction: np.ndarray, label: np.ndarray) -> Scores:
    """Top-1 and balanced accuracy (the mean over classes) of `[N]` class indices, samples without label left out."""
    known = label >= 0
    if not known.any():
        return {}
    right = prediction[known] == label[known]
    by_class = [right[label[known] == c].mean() for c in np.unique(label[known])]
    return {"top1": float(right.mean()), "balanced": float(np.mean(by_class))}


def classify_frozen(
    train: np.ndarray, train_label: np.ndarray, test: np.ndarray, test_label: np.ndarray, neighbours: int
) -> Scores:
    """Accuracy of a linear probe and of cosine k-nearest neighbours on features `[N, D]`, standardised by the first.

    The probe is logistic regression with its regularisation fixed (C = 0.1 on standardised features).
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
        # The similarity breaks ties between classes with the same number of votes.
        votes.scatter_add_(1, label[index], 1 + 1e-3 * similarity)
        right += int((votes.argmax(1) == truth).sum())
    return right / len(y_test)


@dataclass(frozen=True)
class Standard:
    """Zero mean and unit variance a dimension, as in the features it is built of; dead dimensions become 0."""

    mean: np.ndarray
    scale: np.ndarray

    @staticmethod
    def of(x: np.ndarray) -> Standard:
        """Of features `[N, D]`; a dimension that hardly varies becomes 0."""
        std = x.std(0)
        scale = np.where(std > 1e-6 * max(float(std.max()), 1e-12), 1 / np.maximum(std, 1e-12), 0)
        return Standard(x.mean(0), scale)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return ((x - self.mean) * self.scale).astype(np.float32)


def retrieval(queries: np.ndarray, gallery: np.ndarray) -> Scores:
    """Recall at 1, 5 and 10 and the median rank of the row's own partner, by cosine, of `[N, D]` against `[N, D]`.

    Ranks count from 1; a tie counts against the query, so features that are all alike find nothing.
    """
    q, g = F.normalize(torch.from_numpy(queries)), F.normalize(torch.from_numpy(gallery))
    ranks: list[Tensor] = []
    for first in range(0, len(q), 1024):
        similarity = q[first : first + 1024] @ g.T
        own = similarity[torch.arange(len(similarity)), torch.arange(first, first + len(similarity))]
        ranks.append((similarity >= own[:, None] - 1e-6).sum(1))
    rank = torch.cat(ranks).double()
    recalls = {f"R@{k}": float((rank <= k).double().mean()) for k in (1, 5, 10)}
    return {**recalls, "median_rank": float(rank.median())}
