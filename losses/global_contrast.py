"""The global term of WCoRD: the dual form of a Wasserstein dependency measure between teacher and student.

Chen et al. 2021, arXiv 2012.08674 (GCKT); the log link after Ozair et al. 2019, arXiv 1903.11780.

With a 1-Lipschitz critic `g(t, s) = <p(t), q(s)>`, the paper maximises E_joint[g] - E_product[g] over critic and
student. Taken literally (`link: linear`), this only rewards cross-covariance, and embeddings lose rank. Inside a
log-softmax, the same critic must distinguish each pair from its negatives (`link: log_softmax`, the default).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from losses.bank import draw_negatives
from losses.base import Batch, Dims, Features, Loss, LossOutput, check_choice, full_precision, known
from losses.critic import CRITICS
from losses.diagnostics import pair_metrics
from losses.feature_bank import FeatureBank
from losses.gather import gather
from losses.queue import Queue
from losses.rows import sum_by_rows
from losses.standardise import Standardise
from losses.temperature import bounded_temperature

SAMPLED = 256
"""Number of samples per batch whose negatives are counted for the log."""


class GlobalContrast(Loss):
    """WCoRD's global term: contrast each pair with negatives, using a Lipschitz critic.

    `loss = -E_i[log softmax_j(g(t_j, s_i) / tau + log w_ij)]_i`, averaged with the same loss with the roles of the
    networks exchanged. Negatives come from the global batch, a queue of past samples, and rows drawn from a bank of all
    training samples. Their weights `w_ij` in [0, 1] reduce the effect of false negatives. Each sample updates its row
    of the bank, which stores D_T + dim numbers per sample.

    Args:
        student: Dims of the student.
        teacher: Dims of the teacher.
        dim: Size of the projections.
        critic: `lipschitz` (spectrally normalised; input divided by its running norm and clipped to the unit ball),
            `spectral` (only spectrally normalised; unbounded) or `cosine` (L2-normalised projections as in InfoNCE and
            CRD; not Lipschitz).
        link: `log_softmax` is the formula above. `linear` is the literal dual, `E_neg[g] - E_pos[g]`. `bounded` is the
            same dual with CRD's probability h instead of g. `log_bounded` is the loss of CRD, `-E_pos[log h] -
            E_neg[log(1 - h)]`.
        weighting: For `linear`, `bounded` and `log_bounded`: whether E_neg is the mean over the M negatives or their
            sum (M times as large, as in CRD; degenerate with `linear`).
        temperature: Initial value of tau. Not used by `link: linear`.
        learn_temperature: Whether tau is learnt, within [0.01, 1].
        queue: Number of past samples in the queue; 0 disables it.
        bank: Number of rows that are drawn from the bank per step for the whole batch; 0 disables it.
        negatives: Number of rows that each sample draws separately from the bank, as in CRD. If `exclude` contains
            label, they have other labels. They are then the only negatives: queue and batch are not used. 0 disables
            this.
        samples: Size of the training set, required if there is a bank. Set by the pipeline.
        exclude: Samples that share a known label or group are not negatives of each other. If the batch contains
            `index`, past features of a sample are not its negatives, either.
        discount: Weight negatives by `clamp((0.5 - cos(t_i, t_j)) / 0.5, 1e-4, 1)`, where t are standardised teacher
            features.
        standardise: Standardise the teacher's features by running statistics before the critic.

    Raises:
        ValueError: A value is invalid; `bank` or `negatives` is set without `samples`; both are set; `discount` is set
            without `standardise`; or there is a bank, but the batch has no index.
    """

    needs_index = True
    never_decayed = ("log_temperature",)
    log_normaliser: Tensor

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        dim: Annotated[int, Gt(0)] = 128,
        critic: Literal["lipschitz", "spectral", "cosine"] = "lipschitz",
        link: Literal["log_softmax", "linear", "bounded", "log_bounded"] = "log_softmax",
        weighting: Literal["mean", "sum"] = "mean",
        temperature: Annotated[float, Ge(0.01), Le(1)] = 0.07,
        learn_temperature: bool = True,
        queue: Annotated[int, Ge(0)] = 1024,
        bank: Annotated[int, Ge(0)] = 0,
        negatives: Annotated[int, Ge(0)] = 0,
        samples: Annotated[int, Ge(1)] | None = None,
        exclude: tuple[Literal["label", "group"], ...] = ("label", "group"),
        discount: bool = True,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        check_choice("link", link, ("log_softmax", "linear", "bounded", "log_bounded"))
        check_choice("critic", critic, CRITICS)
        check_choice("weighting", weighting, ("mean", "sum"))
        for name in exclude:
            check_choice("exclude", name, ("label", "group"))
        if not 0.01 <= temperature <= 1:
            raise ValueError(f"temperature: {temperature} is not within [0.01, 1]")
        if (bank or negatives) and samples is None:
            raise ValueError("a bank stores one row per training sample: set samples to the size of the training set")
        if negatives and samples == 1:
            raise ValueError("negatives are other samples: samples must be at least 2")
        if bank and negatives:
            raise ValueError(
                "bank draws rows for the whole batch, negatives for each sample separately: set one of them to 0"
            )
        if discount and not standardise:
            raise ValueError("discount requires standardised features of the teacher: set discount: false")
        self.student_projection = CRITICS[critic](student.pooled, dim)
        self.teacher_projection = CRITICS[critic](teacher.pooled, dim, centred=standardise)
        self.standardise = Standardise(teacher.pooled) if standardise else nn.Identity()
        self.link, self.weighting, self.exclude, self.discount = link, weighting, exclude, discount
        self.negatives = negatives
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(temperature)), requires_grad=learn_temperature and link != "linear"
        )
        self.register_buffer("log_normaliser", torch.tensor(-math.inf))  # not set yet
        # Features of a frozen teacher stay valid, except for the statistics of their standardisation, which converge
        # early. Queue and bank therefore store unprojected features, and the current weights project them.
        columns = {
            "teacher": (teacher.pooled, torch.float32),
            "norm": (0, torch.float32),
            "student": (dim, torch.float32),
            "label": (0, torch.int64),
            "group": (0, torch.int64),
        }
        self.queue = Queue(0 if negatives else queue, **columns, index=(0, torch.int64))
        self.bank = FeatureBank(samples, bank, **columns) if samples and (bank or negatives) else None
        self.needs_index = self.bank is not None

    @classmethod
    def suspects(cls, settings: Mapping[str, Any]) -> dict[str, str]:
        keeps_rank = settings.get("link", "log_softmax") in ("log_softmax", "log_bounded")
        return {} if keeps_rank else {"link": "log_softmax, which contrasts each pair with the others"}

    def forward(self, student: Features, teacher: Features, batch: Batch) -> LossOutput:
        h_student, h_teacher = gather(full_precision(student.pooled)), gather(full_precision(teacher.pooled))
        own = self._known(batch, student.pooled)
        if self.training:
            if isinstance(self.standardise, Standardise):
                self.standardise.update(h_teacher)
            self.student_projection.update(h_student)
            self.teacher_projection.update(self.standardise(h_teacher))

        with torch.autocast(h_student.device.type, enabled=False):
            s = self.student_projection(h_student)
            h = self.standardise(h_teacher)
            w = self.teacher_projection.weight
            t = self.teacher_projection(h, w)
            own |= {"teacher": h, "norm": h.norm(dim=1)}
            # First the global batch, with the pairs on the diagonal, then the past (copies, since it changes after this
            # step).
            past = self._past()
            columns = {name: torch.cat([x, *(y.to(x.dtype) for y in past[name])]) for name, x in own.items()}
            columns["filled"] = torch.cat([torch.ones_like(own["index"], dtype=torch.bool), *past["filled"]])
            # Dividing the anchors (not the products) by the temperature saves passes over the products.
            tau = 1 if self.link == "linear" else self.temperature
            keys = self.bank.keys(len(s)) if self.bank is not None and self.negatives else None
            products = self.teacher_projection.products(columns["teacher"], columns["norm"], w)

            def compared(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
                g_student = products(s[rows] / tau)
                # Past features of the student are outdated and have no gradient.
                g_teacher = torch.cat([t[rows] / tau @ x.to(t.dtype).T for x in (s, *past["student"])], 1)
                return g_student, g_teacher, self._log_weight(columns, rows, keys)

            if self.link == "log_softmax":
                total = sum_by_rows(lambda rows: both_ways(*compared(rows), rows.start), len(s), len(columns["norm"]))
                loss = total / len(s)
            else:
                link = self._linear if self.link == "linear" else self._bounded
                g_student, g_teacher, log_weight = compared(slice(0, len(s)))
                loss = (link(g_student, log_weight) + link(g_teacher, log_weight)) / 2

        counted = {name: columns[name] for name in ("filled", "index", "label", *self.exclude)}
        if self.training:
            self._remember(own | {"student": s})
        return LossOutput(loss, partial(self._metrics, s.detach(), t.detach(), counted, keys))

    def _known(self, batch: Batch, samples: Tensor) -> dict[str, Tensor]:
        """Label, group and index of the global batch, -1 for unknown."""
        if self.bank is not None and "index" not in batch:
            raise ValueError('a bank requires batch["index"], the index of each sample in the training set')
        names = ("label", "group", "index")
        found = gather(torch.stack([known(batch, name, samples) for name in names], 1))
        return dict(zip(names, found.unbind(1), strict=True))

    def _past(self) -> dict[str, list[Tensor]]:
        """The columns of past samples in the queue and of rows of the bank, and `filled`, which marks the valid ones.

        The student's features are copies, since autograd saves them.
        """
        names = (*self.queue.columns, "filled")
        past = {name: [self.queue.column(name)] for name in names}
        past["student"] = [self.queue.read("student")]
        if self.bank is not None:
            drawn = self.bank.all() if self.negatives else self.bank.draw()
            for name in names:
                past[name].append(drawn if name == "index" else self.bank.read(name, drawn))
        return past

    def _remember(self, rows: dict[str, Tensor]) -> None:
        if self.queue.length:
            self.queue.push(**rows)
        if self.bank is not None:
            self.bank.write(rows.pop("index"), **rows)

    @property
    def temperature(self) -> Tensor:
        """tau, a scalar in [0.01, 1]."""
        return bounded_temperature(self.log_temperature)

    @torch.no_grad()
    def _log_weight(self, columns: dict[str, Tensor], rows: slice, keys: Tensor | None = None) -> Tensor:
        """Compute `log w_ij [rows, N + Q]` of some samples of the batch: 0 for the pair itself, -inf for non-negatives.

        columns: of batch and past, `[N + Q, ...]`; -1 means unknown for label, group and index. keys: `[N]`, for the
        separate draws of the samples.
        """
        everything, norms = columns["teacher"], columns["norm"].clamp(min=1e-12)
        none = self._no_negatives(columns, rows, keys)
        if self.discount:
            similarity = (everything[rows] / norms[rows, None] @ everything.T).div_(norms)
            log_weight = similarity.sub_(0.5).mul_(-2).clamp_(1e-4, 1).log_()
        else:
            log_weight = torch.zeros_like(none, dtype=everything.dtype)
        log_weight.masked_fill_(none, -math.inf)
        log_weight.diagonal(rows.start).zero_()
        return log_weight

    def _no_negatives(self, columns: dict[str, Tensor], rows: slice, keys: Tensor | None = None) -> Tensor:
        """Which columns are not negatives of some samples, bool `[rows, N + Q]`. The pairs are not excluded."""
        none = ~columns["filled"]
        for name in ("index", *self.exclude):
            value = columns[name]
            known = value.masked_fill(value < 0, -2)  # unknown (-1) must not equal anything
            none = none | (known[rows, None] == value)
        if keys is not None:
            none = none | ~self._drawn(columns, rows, keys)
        return none

    def _drawn(self, columns: dict[str, Tensor], rows: slice, keys: Tensor) -> Tensor:
        """Which columns `[rows, N + Q]` the samples draw separately: only rows of the bank, none of the batch."""
        n = len(keys)
        index, label = columns["index"][:n], columns["label"]
        labels = label[n:].index_put((index,), label[:n]) if "label" in self.exclude else torch.full_like(label[n:], -1)
        drawn = n + draw_negatives(index[rows], labels, self.negatives, keys[rows])
        return torch.zeros(len(drawn), len(label), dtype=torch.bool, device=label.device).scatter_(1, drawn, True)

    def _linear(self, g: Tensor, log_weight: Tensor) -> Tensor:
        return self._negatives(g, log_weight) - g.diagonal().mean()

    def _bounded(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """The dual with CRD's probability `h = e^(g / tau) / (e^(g / tau) + M Z)` that a pair is true.

        Z is the mean of e^(g / tau) over the negatives of the first batch that has any.
        """
        negatives = log_weight.exp().fill_diagonal_(0)
        count = negatives.sum(1).mean().clamp(min=1)  # M
        log_normaliser = self._log_normaliser(x.detach(), log_weight)
        if self.training:
            self.log_normaliser.copy_(log_normaliser)
        x = x - log_normaliser.to(x.dtype).nan_to_num(neginf=0) - count.log()
        if self.link == "bounded":
            return self._negatives(x.sigmoid(), log_weight) - x.sigmoid().diagonal().mean()
        return -self._negatives(F.logsigmoid(-x), log_weight) - F.logsigmoid(x).diagonal().mean()

    def _log_normaliser(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """The log of Z: the stored value, or that of this batch; -inf if there are no negatives yet."""
        log_weight = log_weight.clone().fill_diagonal_(-math.inf)
        first = (x + log_weight).flatten().logsumexp(0) - log_weight.flatten().logsumexp(0)
        first = first.masked_fill(~first.isfinite(), -math.inf)
        return torch.where(self.log_normaliser.isinf(), first.to(self.log_normaliser.dtype), self.log_normaliser)

    def _negatives(self, value: Tensor, log_weight: Tensor) -> Tensor:
        """The weighted mean over the negatives, or M times the mean."""
        weight = log_weight.exp().fill_diagonal_(0)
        if self.weighting == "sum":
            return (value * weight).sum() / len(value)
        return (value * weight).sum() / weight.sum().clamp(min=1e-6)

    def _metrics(self, s: Tensor, t: Tensor, columns: dict[str, Tensor], keys: Tensor | None) -> dict[str, Tensor]:
        negatives = self._count_negatives(columns, slice(0, min(len(s), SAMPLED)), keys)
        return pair_metrics(s, t) | {"temperature": self.temperature.detach(), "negatives": negatives}

    def _count_negatives(self, columns: dict[str, Tensor], rows: slice, keys: Tensor | None) -> Tensor:
        """The mean number of negatives per sample, over some samples of the batch."""
        none = self._no_negatives(columns, rows, keys)
        none.diagonal().fill_(True)
        return (~none).sum(1).float().mean()


def both_ways(g_student: Tensor, g_teacher: Tensor, log_weight: Tensor, start: int) -> Tensor:
    """Cross-entropy in both directions, `-sum_i log softmax_j(g_ij + log w_ij)` at j = i, averaged.

    Args:
        g_student: Products with student anchors, `[rows, N + Q]`.
        g_teacher: Products with teacher anchors, `[rows, N + Q]`.
        log_weight: `log w_ij`, `[rows, N + Q]`.
        start: Index of the first anchor in the global batch.
    """
    target = torch.arange(start, start + len(log_weight), device=log_weight.device)
    one, other = (F.cross_entropy(g + log_weight, target, reduction="sum") for g in (g_student, g_teacher))
    return (one + other) / 2
