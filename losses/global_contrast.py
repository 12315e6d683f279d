"""WCoRD's global term: the dual form of a Wasserstein dependency measure between teacher and student.

Chen et al. 2021, arXiv 2012.08674 (GCKT); the log link after Ozair et al. 2019, arXiv 1903.11780.

With a 1-Lipschitz critic `g(t, s) = <p(t), q(s)>` the paper maximises  E_joint[g] - E_product[g]  over critic and
student. Taken literally (`link: linear`) that only rewards a cross-covariance, and embeddings lose their rank. Inside
a log-softmax the same critic has to tell every pair from its negatives (`link: log_softmax`, the default).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from losses.base import Batch, Dims, Features, Loss, check_choice, full_precision, known
from losses.critic import CosineProjection, LipschitzProjection
from losses.diagnostics import pair_metrics
from losses.feature_bank import FeatureBank
from losses.gather import gather
from losses.queue import Queue
from losses.rows import sum_by_rows
from losses.standardise import Standardise
from losses.temperature import bounded_temperature


class GlobalContrast(Loss):
    """`-E_i[log softmax_j(g(t_j, s_i) / tau + log w_ij)]_i`, and the same with the roles exchanged, averaged.

    Negatives are the global batch, a queue of past samples and rows drawn from a bank of all. Their weights `w_ij` in
    [0, 1] deal with false ones.

    link: `log_softmax` is the formula above; `linear` is the literal dual, `E_neg[g] - E_pos[g]`; `bounded` is the same
    dual of CRD's probability h in place of g, and `log_bounded` CRD's own `-E_pos[log h] - E_neg[log(1 - h)]`.
    weighting: whether E_neg of the last three is a mean over the negatives or their sum (M times as much, as in CRD;
    degenerate with `linear`).

    dim: size of the projections. critic: `lipschitz` (spectrally normalised, clipped to the unit ball) or `cosine`
    (L2-normalised projections, not Lipschitz; what InfoNCE and CRD use). temperature: start value of tau, which is
    learnt within [0.01, 1] unless `learn_temperature` is false; the linear link has none. queue: slots, 0 for in-batch
    negatives only. bank: how many rows a step draws, the same for the whole batch, of a bank that keeps every training
    sample's last features (D_T + dim numbers a sample); 0 for none. samples: the size of the training set; the pipeline
    fills it in. exclude: samples that share a known label or group are no negatives of each other; where batch["index"]
    tells a sample's place in the training set, its own past is none either. discount: weigh negatives by
    `clamp((0.5 - cos(t_i, t_j)) / 0.5, 1e-4, 1)`, t the standardised teacher features.

    Raises ValueError for a bank without `samples`, or for a batch without an index while there is one.
    """

    needs_index: ClassVar[bool] = True
    log_normaliser: Tensor

    def __init__(
        self,
        student: Dims,
        teacher: Dims,
        *,
        dim: Annotated[int, Gt(0)] = 128,
        critic: Literal["lipschitz", "cosine"] = "lipschitz",
        link: Literal["log_softmax", "linear", "bounded", "log_bounded"] = "log_softmax",
        weighting: Literal["mean", "sum"] = "mean",
        temperature: Annotated[float, Ge(0.01), Le(1)] = 0.07,
        learn_temperature: bool = True,
        queue: Annotated[int, Ge(0)] = 1024,
        bank: Annotated[int, Ge(0)] = 0,
        samples: Annotated[int, Ge(1)] | None = None,
        exclude: tuple[Literal["label", "group"], ...] = ("label", "group"),
        discount: bool = True,
    ) -> None:
        super().__init__()
        check_choice("link", link, ("log_softmax", "linear", "bounded", "log_bounded"))
        check_choice("critic", critic, ("lipschitz", "cosine"))
        check_choice("weighting", weighting, ("mean", "sum"))
        for name in exclude:
            check_choice("exclude", name, ("label", "group"))
        if not 0.01 <= temperature <= 1:
            raise ValueError(f"temperature: {temperature} is not within [0.01, 1]")
        if bank and samples is None:
            raise ValueError("a bank keeps a row of each training sample: samples must be their number")
        projection = LipschitzProjection if critic == "lipschitz" else CosineProjection
        self.student_projection = projection(student.pooled, dim)
        self.teacher_projection = projection(teacher.pooled, dim, centred=True)
        self.standardise = Standardise(teacher.pooled)
        self.link, self.weighting, self.exclude, self.discount = link, weighting, exclude, discount
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(temperature)), requires_grad=learn_temperature and link != "linear"
        )
        self.register_buffer("log_normaliser", torch.tensor(-math.inf))  # not fixed yet
        # A frozen teacher's features do not age, but for the statistics that they are standardised by, which settle
        # early: queue and bank keep them, and they are compared under the projection of now.
        columns = {
            "teacher": (teacher.pooled, torch.float32),
            "norm": (0, torch.float32),
            "student": (dim, torch.float32),
            "label": (0, torch.int64),
            "group": (0, torch.int64),
        }
        self.queue = Queue(queue, **columns, index=(0, torch.int64))
        self.bank = FeatureBank(samples, bank, **columns) if bank and samples else None

    def forward(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        h_student, h_teacher = gather(full_precision(student.pooled)), gather(full_precision(teacher.pooled))
        own = self._known(batch, student.pooled)
        if self.training:
            self.standardise.update(h_teacher)
            self.student_projection.update(h_student)
            self.teacher_projection.update(self.standardise(h_teacher))

        with torch.autocast(h_student.device.type, enabled=False):
            s = self.student_projection(h_student)
            h = self.standardise(h_teacher)
            w = self.teacher_projection.weight
            t = self.teacher_projection(h, w)
            own |= {"teacher": h, "norm": h.norm(dim=1)}
            # The global batch with the pairs on the diagonal, then the past; copies, since it changes after this step.
            past = self._past()
            columns = {name: torch.cat([x, *(y.to(x.dtype) for y in past[name])]) for name, x in own.items()}
            columns["filled"] = torch.cat([torch.ones_like(own["index"], dtype=torch.bool), *past["filled"]])
            # The temperature divides the anchors, not the products: its gradient would take several passes over them.
            tau = 1 if self.link == "linear" else self.temperature
            products = self.teacher_projection.products(columns["teacher"], columns["norm"], w)

            def compared(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
                g_student = products(s[rows] / tau)
                # The student's side of the past has aged, and has no gradient.
                g_teacher = torch.cat([t[rows] / tau @ x.to(t.dtype).T for x in (s, *past["student"])], 1)
                return g_student, g_teacher, self._log_weight(columns, rows)

            if self.link == "log_softmax":
                total = sum_by_rows(lambda rows: both_ways(*compared(rows), rows.start), len(s), len(columns["norm"]))
                loss = total / len(s)
            else:
                link = self._linear if self.link == "linear" else self._bounded
                g_student, g_teacher, log_weight = compared(slice(0, len(s)))
                loss = (link(g_student, log_weight) + link(g_teacher, log_weight)) / 2

        self._last = s.detach(), t.detach()
        if self.training:
            self._remember(own | {"student": s})
        return loss

    def _known(self, batch: Batch, samples: Tensor) -> dict[str, Tensor]:
        """Label, group and index of the global batch, -1 where unknown."""
        if self.bank is not None and "index" not in batch:
            raise ValueError('a bank needs batch["index"], the place of each sample in the training set')
        names = ("label", "group", "index")
        found = gather(torch.stack([known(batch, name, samples) for name in names], 1))
        return dict(zip(names, found.unbind(1), strict=True))

    def _past(self) -> dict[str, list[Tensor]]:
        """The columns of past samples, and which of their rows are `filled`: of the queue, and of what the bank gives.

        Autograd saves the student's, which are therefore copies.
        """
        names = (*self.queue.columns, "filled")
        past = {name: [self.queue.column(name)] for name in names}
        past["student"] = [self.queue.read("student")]
        if self.bank is not None:
            drawn = self.bank.draw()
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
        """tau, a scalar within [0.01, 1]."""
        return bounded_temperature(self.log_temperature)

    @torch.no_grad()
    def _log_weight(self, columns: dict[str, Tensor], rows: slice) -> Tensor:
        """`log w_ij [rows, N + Q]` of some samples of the batch: 0 for the pair itself, -inf for what is no negative.

        columns: of batch and past `[N + Q, ...]`; label, group and index -1 where unknown.
        """
        everything, norms = columns["teacher"], columns["norm"].clamp(min=1e-12)
        none = ~columns["filled"]
        for name in ("index", *self.exclude):
            value = columns[name]
            known = value.masked_fill(value < 0, -2)  # -1 is unknown, and equals nothing
            none = none | (known[rows, None] == value)
        if self.discount:
            similarity = (everything[rows] / norms[rows, None] @ everything.T).div_(norms)
            log_weight = similarity.sub_(0.5).mul_(-2).clamp_(1e-4, 1).log_()
        else:
            log_weight = torch.zeros_like(none, dtype=everything.dtype)
        log_weight.masked_fill_(none, -math.inf)
        log_weight.diagonal(rows.start).zero_()
        return log_weight

    def _linear(self, g: Tensor, log_weight: Tensor) -> Tensor:
        return self._negatives(g, log_weight) - g.diagonal().mean()

    def _bounded(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """CRD's probability `h = e^(g / tau) / (e^(g / tau) + M Z)` that a pair is true, Z the mean of e^(g / tau)
        over the negatives of the first batch that has any."""
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
        """log Z: what it was fixed to, or what this batch fixes it to; -inf while there were no negatives."""
        log_weight = log_weight.clone().fill_diagonal_(-math.inf)
        first = (x + log_weight).flatten().logsumexp(0) - log_weight.flatten().logsumexp(0)
        first = first.masked_fill(~first.isfinite(), -math.inf)
        return torch.where(self.log_normaliser.isinf(), first.to(self.log_normaliser.dtype), self.log_normaliser)

    def _negatives(self, value: Tensor, log_weight: Tensor) -> Tensor:
        """The weighted mean over the negatives, or its M-fold."""
        weight = log_weight.exp().fill_diagonal_(0)
        if self.weighting == "sum":
            return (value * weight).sum() / len(value)
        return (value * weight).sum() / weight.sum().clamp(min=1e-6)

    def metrics(self) -> dict[str, Tensor]:
        if not self._last:
            return {}
        return pair_metrics(*self._last) | {"temperature": self.temperature.detach()}


def both_ways(g_student: Tensor, g_teacher: Tensor, log_weight: Tensor, start: int) -> Tensor:
    """`-sum_i log softmax_j(g_ij + log w_ij)` at j = i, of anchors i from `start` on; the mean of both directions."""
    target = torch.arange(start, start + len(log_weight), device=log_weight.device)
    one, other = (F.cross_entropy(g + log_weight, target, reduction="sum") for g in (g_student, g_teacher))
    return (one + other) / 2
