"""LocalTransport, the relational term and WCoRD: limits that are known, gradients, invariances."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from losses import Dims, Features, GlobalContrast, LocalTransport, WCoRD, local_transport
from losses.implicit import implicit
from losses.relational import relational_divergence
from losses.sinkhorn import sinkhorn
from losses.standardise import standardised

STUDENT, TEACHER = Dims(12), Dims(20)
BATCH = {"label": torch.full((10,), -1), "group": torch.full((10,), -1)}
Double = torch.float64


def features(seed: int = 0) -> tuple[Features, Features]:
    rng = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(10, dim, generator=rng, dtype=Double) for dim in (12, 20))
    return Features(s), Features(t)


def make(**keywords: object) -> LocalTransport:
    torch.manual_seed(0)
    loss = LocalTransport(STUDENT, TEACHER, **keywords).double()  # type: ignore[arg-type]
    loss(*features(1), BATCH)
    return loss.eval()


def test_anchor_zero_is_feature_regression() -> None:
    loss = make(anchor=0.0)
    student, teacher = features()
    s, t = loss.student_projection(student.pooled), loss.standardise(teacher.pooled)
    torch.testing.assert_close(loss(student, teacher, BATCH), (1 - F.cosine_similarity(s, t)).mean())


def test_anchor_one_is_the_plain_term_and_does_not_know_the_pairs() -> None:
    loss = make(anchor=1.0, iterations=500)
    student, teacher = features()
    shuffled = Features(teacher.pooled[torch.randperm(10)])
    torch.testing.assert_close(loss(student, shuffled, BATCH), loss(student, teacher, BATCH))
    anchored = make(anchor=0.2)
    assert (anchored(student, shuffled, BATCH) - anchored(student, teacher, BATCH)).abs() > 1e-3


@pytest.mark.parametrize("keywords", [{"relational": 0.0}, {"relational": 0.5}, {"space": "shared", "dim": 6}])
def test_gradient_is_that_of_the_cost_under_a_fixed_plan(keywords: dict[str, object]) -> None:
    """Central differences with the plan held still agree with backward; the envelope theorem is the next test's."""
    loss = make(**keywords)
    student, teacher = features()
    x = student.pooled.requires_grad_()
    loss(Features(x), teacher, BATCH).backward()
    with torch.no_grad():
        s = F.normalize(loss.student_projection(x), dim=1)
        t = F.normalize(loss.teacher_projection(loss.standardise(teacher.pooled)), dim=1)
        plan = loss._plan(1 - s @ t.T)

    def fixed(x: torch.Tensor) -> torch.Tensor:
        t = loss.standardise(teacher.pooled)
        s, u = F.normalize(loss.student_projection(x), dim=1), F.normalize(loss.teacher_projection(t), dim=1)
        value = (plan * (1 - s @ u.T)).sum()
        return value + loss.relational * relational_divergence(x, t, plan) if loss.relational else value

    numeric = torch.zeros_like(x)
    with torch.no_grad():
        for index in range(x.numel()):
            e = torch.zeros(x.numel(), dtype=Double)
            e[index] = 1e-6
            e = e.view_as(x)
            numeric.view(-1)[index] = (fixed(x + e) - fixed(x - e)) / 2e-6
    torch.testing.assert_close(x.grad, numeric, atol=1e-7, rtol=1e-5)


def test_detaching_the_plan_is_the_envelope_theorem() -> None:
    """d/dC of the entropic optimum  min <P, C> + eps KL(P || P0)  is P itself."""
    from losses import sinkhorn

    torch.manual_seed(0)
    cost = torch.rand(6, 6, dtype=Double, requires_grad=True)
    prior = (0.8 * torch.eye(6, dtype=Double) / 6 + 0.2 / 36).log()
    plan = sinkhorn(cost, 0.1, 2000, prior)
    optimum = (plan * cost).sum() + 0.1 * (plan * (plan.log() - prior)).sum()
    optimum.backward()
    torch.testing.assert_close(cost.grad, plan.detach())


@pytest.mark.parametrize("cost", ["cosine", "euclidean", "squared_euclidean"])
@pytest.mark.parametrize("relative", [False, True])
def test_unrolled_plan_has_the_gradient_of_its_own_cost(cost: str, relative: bool) -> None:
    """The mean cost that makes epsilon relative is a constant of the batch: held at its value, it is a larger epsilon,
    whose gradient is checked."""
    loss = make(cost=cost, plan_gradient="unrolled", iterations=5, relative_epsilon=relative)
    student, teacher = features()
    x = student.pooled.requires_grad_()
    scale = 1.0
    if relative:
        with torch.no_grad():
            s, t = loss.student_projection(x), loss.standardise(teacher.pooled)
            if cost == "cosine":
                s, t = F.normalize(s, dim=1), F.normalize(t, dim=1)
            scale = float(loss._cost(s, t).mean())
        assert abs(scale - 1) > 0.01
    held = make(cost=cost, plan_gradient="unrolled", iterations=5, epsilon=0.1 * scale)
    assert torch.autograd.gradcheck(lambda x: held(Features(x), teacher, BATCH), x)
    unrolled = torch.autograd.grad(loss(Features(x), teacher, BATCH), x)[0]
    torch.testing.assert_close(unrolled, torch.autograd.grad(held(Features(x), teacher, BATCH), x)[0])
    loss.plan_gradient = "detached"
    detached = torch.autograd.grad(loss(Features(x), teacher, BATCH), x)[0]
    assert (unrolled - detached).abs().max() > 1e-6


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_relative_epsilon_knows_no_unit(scale: float) -> None:
    loss, cost = make(relative_epsilon=True), torch.rand(10, 10, dtype=Double)
    torch.testing.assert_close(loss._plan(scale * cost), loss._plan(cost))


def test_costs_written_out() -> None:
    s, t = torch.randn(4, 6, dtype=Double), torch.randn(4, 6, dtype=Double)
    squared = torch.cdist(s, t).square() / 6
    torch.testing.assert_close(make(cost="squared_euclidean")._cost(s, t), squared)
    torch.testing.assert_close(make(cost="euclidean")._cost(s, t), squared.sqrt())


@pytest.mark.parametrize("cost", ["euclidean", "squared_euclidean"])
def test_distances_in_fp32_near_zero_and_far_from_the_origin(cost: str) -> None:
    loss, rng = make(cost=cost), torch.Generator().manual_seed(0)
    t = torch.randn(8, 64, generator=rng, dtype=Double)
    nearly = t[4:] + torch.logspace(-5, -2, 4, dtype=Double)[:, None]
    s = torch.cat([t[:2], t[2:4] + 1, nearly]) + 100
    x = s.float().requires_grad_()
    found = loss._cost(x, (t + 100).float())
    exact = torch.cdist(x.detach().double(), (t + 100).float().double()) / 8
    exact = exact if cost == "euclidean" else exact.square()
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=2e-3 if cost == "euclidean" else 2e-6)
    found.diagonal().sum().backward()
    assert x.grad is not None
    steepest = 1 / 8 if cost == "euclidean" else 2 / 8  # of a distance, and of its square where it is 1
    assert (x.grad.norm(dim=1) < 1.5 * steepest).all()


@pytest.mark.parametrize("distance", [0, 1e-6, 1e-4, 3e-4, 1e-3, 1e-2])
def test_slope_of_a_distance_that_is_rounding(distance: float) -> None:
    """A distance's own slope is 1, over the root of the dimensions as it is a mean over them."""
    rng = torch.Generator().manual_seed(0)
    t, noise = torch.randn(2, 256, 64, generator=rng)
    s = (t + distance * noise).requires_grad_()
    make(cost="euclidean")._cost(s, t).diagonal().sum().backward()
    assert s.grad is not None
    assert 8 * s.grad.norm(dim=1).max() < 2


@pytest.mark.parametrize("cost", ["euclidean", "squared_euclidean"])
def test_distances_take_no_memory_a_dimension(cost: str) -> None:
    loss, sizes = make(cost=cost), []
    s, t = torch.randn(10, 50, requires_grad=True), torch.randn(10, 50)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        loss._cost(s, t)
    assert 0 < max(sizes) <= 10 * 50


@pytest.mark.parametrize("relational", [0.0, 0.5])
def test_a_large_batch_takes_the_blocked_path_to_the_same_end(
    relational: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = make(relational=relational)
    student, teacher = features()
    x = student.pooled.requires_grad_()
    whole, metrics, _ = loss.with_metrics(Features(x), teacher, BATCH)
    expected = torch.autograd.grad(whole, x)
    monkeypatch.setattr("losses.rows.LARGEST_WHOLE", 5)
    monkeypatch.setattr("losses.rows.BLOCK_ELEMENTS", 30)
    monkeypatch.setattr(local_transport, "sinkhorn", None)
    blocked, blocked_metrics, _ = loss.with_metrics(Features(x), teacher, BATCH)
    torch.testing.assert_close(blocked, whole)
    torch.testing.assert_close(torch.autograd.grad(blocked, x), expected)
    torch.testing.assert_close(blocked_metrics(), metrics())


def test_a_large_batch_holds_no_relations_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("losses.rows.LARGEST_WHOLE", 5)
    monkeypatch.setattr("losses.rows.BLOCK_ELEMENTS", 30)
    loss, sizes = make(relational=0.5), [0]
    student, teacher = (Features(x.pooled.repeat(5, 1)) for x in features())
    many = {name: x.repeat(5) for name, x in BATCH.items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        loss(Features(student.pooled.requires_grad_()), teacher, many)
    assert 0 < max(sizes) < 50 * 50


@pytest.mark.parametrize("space", ["teacher", "shared"])
def test_without_standardisation_the_teacher_is_taken_as_it_is(space: Any) -> None:
    loss = make(standardise=False, space=space, anchor=0.0)
    student, teacher = features()
    s, t = loss.student_projection(student.pooled), loss.teacher_projection(teacher.pooled)
    torch.testing.assert_close(loss(student, teacher, BATCH), (1 - F.cosine_similarity(s, t)).mean())
    assert make(anchor=0.0, space=space)(student, teacher, BATCH) != loss(student, teacher, BATCH)


def test_ipot_does_not_take_the_path_of_large_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = make(anchor=1.0, solver="ipot")
    whole = loss(*features(), BATCH)
    monkeypatch.setattr("losses.rows.LARGEST_WHOLE", 5)
    assert loss(*features(), BATCH) == whole


def test_metrics_count_the_mass_on_the_pairs() -> None:
    loss = make(anchor=0.0)
    metrics = loss.with_metrics(*features(), BATCH).metrics()
    assert metrics["plan_diagonal"] == pytest.approx(1)
    assert metrics["marginal_error"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("keywords", [{"anchor": 0.0}, {"epsilon": 0.002}, {"epsilon": 0.01}])
def test_implicit_gradient_of_a_plan_that_falls_into_pairs(keywords: dict[str, Any]) -> None:
    """Then the potentials are not unique; the gradient is, and unrolling finds it too."""
    found = []
    for plan_gradient in "implicit", "unrolled":
        loss = LocalTransport(TEACHER, TEACHER, space="raw", plan_gradient=plan_gradient, iterations=100, **keywords)
        teacher = features()[1]
        x = (teacher.pooled + 0.1 * features(2)[1].pooled).requires_grad_()
        found.append(torch.autograd.grad(loss(Features(x), teacher, BATCH), x)[0])
    torch.testing.assert_close(*found, atol=1e-7, rtol=1e-5)


def test_unrolled_gradient_of_samples_without_weight_or_partner() -> None:
    loss = make(anchor=0.0, plan_gradient="unrolled")
    student, teacher = features()
    x = student.pooled.requires_grad_()
    weight = torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1, 1, 1], dtype=Double)
    loss(Features(x), teacher, BATCH | {"weight": weight}).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.norm(dim=1) > 0, weight > 0)


def test_relations_do_not_see_rotation_scale_and_shift() -> None:
    x = torch.randn(10, 12, dtype=Double)
    rotation = torch.linalg.qr(torch.randn(12, 12, dtype=Double)).Q
    torch.testing.assert_close(
        relational_divergence(3 * x @ rotation + 1, x), torch.zeros((), dtype=Double), atol=1e-9, rtol=0
    )
    assert relational_divergence(torch.randn(10, 12, dtype=Double), x) > 0.01


def test_relations_are_carried_by_the_plan_before_the_softmax() -> None:
    """The definition, entry by entry: KL between the softmaxes over j != i of S_S and of (B P) S_T (B P)'."""
    student, teacher = features()
    plan = sinkhorn(torch.rand(10, 10, dtype=Double), epsilon=0.1)
    s, t = (F.normalize(x.pooled - x.pooled.mean(0), dim=1) for x in (student, teacher))
    carried = 10 * plan @ (t @ t.T) @ (10 * plan).T
    expected = 0.0
    for i in range(10):
        others = [j for j in range(10) if j != i]
        p, q = ((similarity[i, others] / 0.1).softmax(0) for similarity in (carried, s @ s.T))
        expected += float((p * (p / q).log()).sum()) / 10
    assert float(relational_divergence(student.pooled, teacher.pooled, plan)) == pytest.approx(expected, rel=1e-10)


def test_relations_of_tiny_batches_have_a_gradient_of_zero() -> None:
    x = torch.randn(2, 12, requires_grad=True)
    relational_divergence(x, torch.randn(2, 20)).backward()
    assert (x.grad == 0).all()


def test_wcord_is_the_weighted_sum_of_its_terms() -> None:
    loss = WCoRD(STUDENT, TEACHER, global_weight=0.3, local_weight=1.7, queue=8).double()
    assert isinstance(loss.global_contrast, GlobalContrast)
    loss(*features(1), BATCH)
    loss.eval()
    student, teacher = features()
    total = loss(student, teacher, BATCH)
    student = Features(standardised(student.pooled))
    parts = loss.global_contrast(student, teacher, BATCH), loss.local_transport(student, teacher, BATCH)
    torch.testing.assert_close(total, 0.3 * parts[0] + 1.7 * parts[1])


def test_implicit_gradient_is_what_unrolling_tends_to() -> None:
    student, teacher = features()
    x, found = student.pooled.requires_grad_(), []
    for plan_gradient in ("implicit", "unrolled"):
        loss = make(plan_gradient=plan_gradient, iterations=300)
        loss.train(False)
        found.append(torch.autograd.grad(loss(Features(x), teacher, BATCH), x)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)
    detached = torch.autograd.grad(make(iterations=300)(Features(x), teacher, BATCH), x)[0]
    assert (found[0] - detached).abs().max() > 1e-3 * detached.abs().max()  # it is another gradient


def test_implicit_gradient_of_a_plan_with_given_marginals_and_a_masked_row() -> None:
    rng = torch.Generator().manual_seed(0)
    cost, upstream = (torch.rand(4, 6, generator=rng, dtype=Double) for _ in range(2))
    row = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=Double)
    column = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2, 0.0], dtype=Double)

    def value(cost: torch.Tensor) -> torch.Tensor:
        plan = sinkhorn(cost, 0.3, 400, log_row=row.log(), log_column=column.log())
        return (upstream * plan).sum()

    plan = sinkhorn(cost, 0.3, 400, log_row=row.log(), log_column=column.log())
    x = cost.clone().requires_grad_()
    (ours,) = torch.autograd.grad((upstream * implicit(plan, x, 0.3)).sum(), x)
    for i in range(4):
        for j in range(6):
            step = torch.zeros_like(cost)
            step[i, j] = 1e-6
            expected = (value(cost + step) - value(cost - step)) / 2e-6
            assert ours[i, j] == pytest.approx(float(expected), abs=1e-8)


@pytest.mark.parametrize("relational", [0.0, 1.0])
@pytest.mark.parametrize(
    "keywords",
    [
        {"anchor": 1.0},
        {"anchor": 0.2},
        {"anchor": 0.0},
        {"anchor": 1.0, "solver": "ipot", "proximal_steps": 2000},
        {"anchor": 0.2, "relative_epsilon": True},
        {"anchor": 0.2, "marginal_penalty": 0.5},
    ],
    ids=str,
)
def test_weights_are_the_marginals_and_a_weight_of_zero_is_no_sample(
    relational: float, keywords: dict[str, Any]
) -> None:
    loss = make(iterations=300, relational=relational, **keywords)
    student, teacher = features()
    student.pooled.requires_grad_()
    weighted = loss(student, teacher, BATCH | {"weight": torch.tensor([2.0] * 7 + [0.0] * 3)})
    few = loss(Features(student.pooled[:7]), Features(teacher.pooled[:7]), {k: v[:7] for k, v in BATCH.items()})
    torch.testing.assert_close(weighted, few)
    (gradient,) = torch.autograd.grad(weighted, student.pooled)
    assert (gradient[7:] == 0).all()
    assert torch.isfinite(gradient).all()
    weight = torch.arange(1, 11)
    metrics = loss.with_metrics(student, teacher, BATCH | {"weight": weight}).metrics()
    if "marginal_penalty" not in keywords:
        assert metrics["marginal_error"] < 1e-4
    loss = make(relational=relational, **keywords)
    same = loss(student, teacher, BATCH | {"weight": torch.full((10,), 3.0)})
    torch.testing.assert_close(same, loss(student, teacher, BATCH))


@pytest.mark.parametrize("garbage", [-3e4, 1e10, math.nan])
@pytest.mark.parametrize("plan_gradient", ["detached", "unrolled", "implicit"])
@pytest.mark.parametrize("cost", ["cosine", "euclidean", "squared_euclidean"])
@pytest.mark.parametrize("space", ["teacher", "raw"])
def test_what_a_sample_without_weight_holds_is_not_looked_at(
    space: Any, cost: Any, plan_gradient: Any, garbage: float
) -> None:
    torch.manual_seed(0)
    loss = LocalTransport(Dims(8), Dims(8), space=space, cost=cost, plan_gradient=plan_gradient, relational=0.5)
    x, y = torch.randn(2, 10, 8)
    batch = BATCH | {"weight": torch.tensor([1.0] * 7 + [0.0] * 3)}
    found = []
    for value in (0.0, garbage):
        x[7:], y[7:] = value, -value
        student = x.clone().requires_grad_()
        total = loss(Features(student), Features(y.clone()), batch)
        found.append((total, torch.autograd.grad(total, student)[0]))
        loss.standardise.load_state_dict(LocalTransport(Dims(8), Dims(8), space=space).standardise.state_dict())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"cost": "sqeuclidean"}, "cost: 'sqeuclidean' is not one of cosine"),
        ({"space": "projected"}, "space: 'projected' is not one of"),
        ({"plan_gradient": "envelope"}, "plan_gradient: 'envelope' is not one of"),
        ({"anchor": 2.0}, "anchor: 2.0 is not within"),
        ({"start_epsilon": -1.0}, "start_epsilon: -1.0 is not above 0"),
        ({"solver": "IPOT"}, "solver: 'IPOT' is not one of sinkhorn, ipot"),
        ({"solver": "ipot"}, "set anchor: 1, or solver: sinkhorn"),
        ({"solver": "ipot", "anchor": 1.0, "plan_gradient": "unrolled"}, "set plan_gradient: detached"),
        ({"solver": "ipot", "anchor": 1.0, "plan_gradient": "implicit"}, "set plan_gradient: detached"),
        ({"solver": "ipot", "anchor": 1.0, "marginal_penalty": 1.0}, "set marginal_penalty: null"),
        (
            {"solver": "ipot", "anchor": 1.0, "relative_epsilon": True, "start_epsilon": 1.0},
            "set relative_epsilon: false, start_epsilon: null",
        ),
    ],
)
def test_what_no_transport_can_be_made_of_is_refused(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LocalTransport(STUDENT, TEACHER, **keywords)


def test_a_sample_of_twice_the_weight_is_a_sample_given_twice() -> None:
    loss = make(iterations=600)
    student, teacher = features()
    twice = torch.tensor([0, *range(10)])
    doubled = {name: value[twice] for name, value in BATCH.items()}
    weight = torch.tensor([2.0] + [1.0] * 9)
    torch.testing.assert_close(
        loss(student, teacher, BATCH | {"weight": weight}),
        loss(Features(student.pooled[twice]), Features(teacher.pooled[twice]), doubled),
    )


def test_samples_without_weight_do_not_move_the_statistics() -> None:
    student, teacher = features()
    weighted, few = (LocalTransport(STUDENT, TEACHER).double() for _ in range(2))
    weighted(student, teacher, BATCH | {"weight": torch.tensor([1.0] * 7 + [0.0] * 3)})
    few(Features(student.pooled[:7]), Features(teacher.pooled[:7]), {k: v[:7] for k, v in BATCH.items()})
    torch.testing.assert_close(weighted.standardise.state_dict(), few.standardise.state_dict())


def test_relations_by_weight_written_out() -> None:
    student, teacher = features()
    weight = torch.arange(10, dtype=Double) / 45
    s, t = (F.normalize(x.pooled - weight @ x.pooled, dim=1) for x in (student, teacher))
    expected = 0.0
    for i in range(10):
        others = [j for j in range(10) if j not in (i, 0)]  # the first one has no weight
        p, q = ((weight[others] * (x[i] @ x[others].T / 0.1).exp()) for x in (t, s))
        expected += float(weight[i] * (p / p.sum() * (p / p.sum() / (q / q.sum())).log()).sum())
    found = relational_divergence(student.pooled, teacher.pooled, weight=weight)
    assert float(found) == pytest.approx(expected, rel=1e-10)


def test_wcord_takes_weights_in_its_local_term() -> None:
    loss = WCoRD(STUDENT, TEACHER).double()
    loss(*features(1), BATCH)
    loss.eval()
    student, teacher = features()
    weighted = BATCH | {"weight": torch.arange(10)}
    own = Features(standardised(student.pooled))
    parts = loss.global_contrast(own, teacher, BATCH), loss.local_transport(own, teacher, weighted)
    expected = loss.global_weight * parts[0] + loss.local_weight * parts[1]
    torch.testing.assert_close(loss(student, teacher, weighted), expected)


def test_epsilon_falls_to_its_value_and_its_place_is_kept() -> None:
    loss = LocalTransport(STUDENT, TEACHER, epsilon=0.01, start_epsilon=1.0, anneal_steps=4).double()
    seen = []
    for step in range(6):
        if step == 3:
            other = LocalTransport(STUDENT, TEACHER, epsilon=0.01, start_epsilon=1.0, anneal_steps=4).double()
            other.load_state_dict(loss.state_dict())
            loss = other
        seen.append(float(loss.train()._epsilon()))
    assert seen == pytest.approx([1, 10**-0.5, 0.1, 10**-1.5, 0.01, 0.01])
    annealed, there = loss.eval()(*features(), BATCH), make(epsilon=0.01)
    there.load_state_dict({k: v for k, v in loss.state_dict().items() if k != "steps"})
    torch.testing.assert_close(annealed, there(*features(), BATCH))


def test_raw_space_compares_what_is_there() -> None:
    same = Dims(12)
    loss = LocalTransport(same, same, space="raw", anchor=0.0).double()
    student = features()[0]
    assert not list(loss.parameters())
    assert loss(student, student, BATCH) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="12 dimensions and the teacher's 20"):
        LocalTransport(STUDENT, TEACHER, space="raw")
