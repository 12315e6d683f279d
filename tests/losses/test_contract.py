"""What holds of every loss, whatever it computes."""

from __future__ import annotations

import copy
import shutil
import weakref
from typing import Any

import pytest
import torch
from cases import NAMES, ToyNetwork, batch, build, dims, sides

from losses import Batch, Dims, Features, LocalTransport, Loss, LossOutput, local_transport, position_transport

STUDENT, TEACHER = dims(12, 6, size=8), dims(20, 10)


def made(name: str) -> tuple[Loss, ToyNetwork, ToyNetwork]:
    student, teacher = sides(name, STUDENT, TEACHER)
    return build(name, student, teacher), ToyNetwork(student, size=8), ToyNetwork(teacher).requires_grad_(False)


def output(loss: Loss, student: ToyNetwork, teacher: ToyNetwork, count: int, **labels: int) -> LossOutput:
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(count))
    return loss.with_metrics(student(x), teacher(x), batch(count, **labels))


def value(loss: Loss, student: ToyNetwork, teacher: ToyNetwork, count: int, **labels: int) -> torch.Tensor:
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(count))
    return loss(student(x), teacher(x), batch(count, **labels))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_that_tells_nothing_is_one_of_unknown_labels(name: str) -> None:
    (one, student, teacher), (other, *_) = made(name), made(name)
    x, unknown = torch.randn(5, 5), {"label": torch.full((5,), -1), "group": torch.full((5,), -1)}
    index = {"index": torch.arange(5)} if one.needs_index else {}  # a bank is of samples that are told apart
    torch.testing.assert_close(one(student(x), teacher(x), index), other(student(x), teacher(x), unknown | index))


@pytest.mark.parametrize("name", NAMES)
def test_no_loss_changes_its_state_in_evaluation_mode(name: str) -> None:
    """Else validation on held-out samples would change the training."""
    loss, student, teacher = made(name)
    value(loss, student, teacher, 9)
    loss.eval()
    before = {key: x.clone() for key, x in loss.state_dict().items()}
    versions = [x._version for x in loss.buffers()]
    value(loss, student, teacher, 7)
    for key, x in loss.state_dict().items():
        torch.testing.assert_close(x, before[key], rtol=0, atol=0, msg=key)
    assert versions == [x._version for x in loss.buffers()]


PER_SAMPLE = {"kd", "cross_entropy", "dkd", "logit_standardisation", "at", "nst", "vid"}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_declared_per_sample_is_the_mean_of_its_parts(name: str) -> None:
    """And no other loss of the list is, or it would not be refused with gradient accumulation for nothing."""
    (loss, student, teacher), (other, *_) = made(name), made(name)
    x, samples = torch.randn(8, 5), batch(8) | {"label": torch.tensor([-1, 0, -1, -1, 1, 2, 3, 0])}
    whole = loss(student(x), teacher(x), samples)
    total, averaged = torch.zeros(()), 0
    for rows in (slice(0, 4), slice(4, 8)):
        part = {key: value[rows] for key, value in samples.items()} | {"key": ["sample"] * 4}
        count = int(other.averaged(part))
        total, averaged = total + count * other(student(x[rows]), teacher(x[rows]), part), averaged + count
    assert loss.per_sample == (name in PER_SAMPLE)
    if loss.per_sample:
        torch.testing.assert_close(total / averaged, whole)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 9])
def test_small_batches_and_missing_labels_are_finite(name: str, count: int) -> None:
    loss, student, teacher = made(name)
    for labels in ({}, {"label": -1}, {"label": 2}):
        total, metrics, _ = output(loss, student, teacher, count, **labels)
        assert total.shape == ()
        assert total.dtype == torch.float32
        total.backward()
        for module in (student, loss):
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            assert all(torch.isfinite(g).all() for g in gradients)
        metrics()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spoilt", ["student", "teacher", "both"])
def test_a_batch_that_is_not_finite_is_kept_by_no_buffer(name: str, spoilt: str) -> None:
    """The pipeline does not take such a step; what a loss remembers of it would spoil those that follow."""
    loss, student, teacher = made(name)
    x = torch.randn(9, 5)
    bad = x.clone()
    bad[4] = torch.nan
    sides = student(bad if spoilt != "teacher" else x), teacher(bad if spoilt != "student" else x)
    for _ in range(2):  # before there is anything to keep, and after
        loss.with_metrics(*sides, batch(9)).metrics()
        value(loss, student, teacher, 9)
    assert all((buffer < torch.inf).all() for buffer in loss.buffers())  # -inf: a normaliser that is not fixed yet
    assert value(loss, student, teacher, 9).isfinite()
    if spoilt == "both":
        clean = made(name)[0]
        for _ in range(3):
            value(clean, student, teacher, 9)
        own = {"_u", "_v", "steps", "log_z"}  # these count steps, and CRD draws other negatives at another step
        kept = {key: b for key, b in loss.named_buffers() if key.rpartition(".")[2] not in own}
        torch.testing.assert_close(kept, {key: b for key, b in clean.named_buffers() if key in kept})


@pytest.mark.parametrize("name", ["crd", "global_contrast", "local_transport", "info_nce", "siglip", "cosine", "wcord"])
def test_what_has_pairs_of_vectors_in_one_space_tells_how_far_apart_they_are(name: str) -> None:
    loss, student, teacher = made(name)
    names = {key.rpartition("/")[2] for key in output(loss, student, teacher, 9).metrics()}
    assert {"similarity_gap", "projected_std", "effective_rank"} <= names


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_scalars_of_their_own_batch_and_the_loss_is_the_sum_of_its_parts(name: str) -> None:
    loss, student, teacher = made(name)
    total, metrics, parts = output(loss, student, teacher, 9)
    assert all(metric.shape == () and not metric.requires_grad for metric in metrics().values())
    assert not parts or torch.equal(total, torch.stack([*parts.values()]).sum())
    loss.eval()  # what is learnt and counted over the steps stays as it is
    first = output(loss, student, teacher, 9).metrics
    before = first()
    output(loss, student, teacher, 5, label=1)
    torch.testing.assert_close(dict(first()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_student_learns_and_the_teacher_does_not(name: str) -> None:
    loss, student, teacher = made(name)
    value(loss, student, teacher, 9)  # a bank is empty before
    value(loss, student, teacher, 9).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def two_steps(name: str, backend: str | None) -> list[torch.Tensor]:
    """The loss, the gradients and the buffers (queue, bank, statistics) of the second step of training."""
    loss, student, teacher = made(name)
    for module in loss.modules():
        if isinstance(module, LocalTransport):
            module.iterations = min(module.iterations, 4)  # each of them is compiled
    torch.compiler.reset()
    run = torch.compile(loss, fullgraph=True, backend=backend) if backend else loss
    for _ in range(2):
        student.zero_grad()
        loss_value = value(run, student, teacher, 9)
        loss_value.backward()
    gradients = [p.grad for module in (student, loss) for p in module.parameters() if p.grad is not None]
    return [loss_value, *gradients, *loss.buffers()]


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "kd" else pytest.mark.slow) for name in NAMES])
def test_compiled_whole(name: str) -> None:
    """Traced forward and backward, in which what is mutated and what is saved must not meet."""
    ours, expected = two_steps(name, "aot_eager"), two_steps(name, None)
    torch.testing.assert_close(ours[0], expected[0], rtol=2e-6, atol=0)
    torch.testing.assert_close(ours, expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["wcord", "crd", "wkd_logit"])
def test_compiled_to_machine_code(name: str) -> None:
    for ours, expected in zip(two_steps(name, "inductor"), two_steps(name, None), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing_but_the_rounding_of_its_inputs(name: str) -> None:
    loss, student, teacher = made(name)
    x = torch.randn(9, 5)

    def cast(f: Features, dtype: torch.dtype) -> Features:
        assert f.logits is not None
        return Features(f.pooled.to(dtype), [m.to(dtype) for m in f.maps], f.logits.to(dtype))

    loss(student(x), teacher(x), batch(9))
    loss.eval()
    half = [cast(network(x), torch.bfloat16) for network in (student, teacher)]
    exact = loss(*(cast(f, torch.float32) for f in half), batch(9))
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(*half, batch(9))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_in_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, student, teacher = (module.double() for module in made(name))
    x = torch.randn(5, 5, dtype=torch.float64)
    loss(student(x), teacher(x), batch(5))
    loss.eval()
    seen = student(x)
    leaves = [leaf.detach().requires_grad_() for leaf in (seen.pooled, *seen.maps, seen.logits)]

    def of(pooled: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = loss(Features(pooled, list(rest[:-1]), rest[-1]), teacher(x), batch(5))
        return found

    if getattr(getattr(loss, "local_transport", loss), "plan_gradient", None) == "detached":
        # Its gradient is, by design, that of the cost under the plan it found: that plan is held.
        expected = torch.autograd.grad(of(*leaves), leaves, allow_unused=True)
        plans: list[torch.Tensor] = []
        solvers = ((local_transport, "sinkhorn"), (local_transport, "ipot"), (position_transport, "sinkhorn"))
        for module, solver in solvers:
            found = getattr(module, solver)
            monkeypatch.setattr(module, solver, lambda *a, f=found, **k: plans.append(f(*a, **k)) or plans[-1])
        of(*leaves)
        (plan,) = plans
        for module, solver in solvers:
            monkeypatch.setattr(module, solver, lambda *_, **__: plan)
        held = torch.autograd.grad(of(*leaves), leaves, allow_unused=True)
        torch.testing.assert_close([g for g in held if g is not None], [g for g in expected if g is not None])
    assert torch.autograd.gradcheck(of, leaves, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("small", "large"), [(8, 4096), (4096, 8)])
def test_sizes_from_8_to_4096(name: str, small: int, large: int) -> None:
    pair = sides(name, dims(small, 8), dims(large, 16))
    loss, student, teacher = build(name, *pair), *map(ToyNetwork, pair)
    x = torch.randn(6, 5)
    with torch.no_grad():
        known = teacher(x)
    total = loss(student(x), known, batch(6))
    total.backward()
    gradients = [p.grad for module in (student, loss) for p in module.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in (total, *gradients))


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_read_only_by_those_who_say_so(name: str) -> None:
    """The pipeline hands maps to no other, to spare their memory."""
    loss, student, teacher = made(name)
    if not loss.needs_maps:
        x = torch.randn(9, 5)
        bare = [Features(f.pooled, [], f.logits) for f in (student(x), teacher(x))]
        torch.testing.assert_close(loss(*bare, batch(9)), made(name)[0](student(x), teacher(x), batch(9)))


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_keeps_no_graph(name: str) -> None:
    """What it keeps for its metrics would hold the batch's activations, and could not be copied."""
    loss, student, teacher = made(name)
    seen = student(torch.randn(9, 5))
    metrics = loss.with_metrics(seen, teacher(torch.randn(9, 5)), batch(9)).metrics
    copy.deepcopy(loss)
    outputs = [weakref.ref(output) for output in (seen.pooled, *seen.maps, seen.logits)]
    del seen
    assert not any(output() is not None for output in outputs)
    metrics()


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_leaves_nothing_behind_but_buffers(name: str) -> None:
    loss, student, teacher = made(name)

    before = {where: dict(vars(module)) for where, module in loss.named_modules()}
    value(loss, student, teacher, 9)
    for where, module in loss.named_modules():
        assert vars(module).keys() == before[where].keys()
        assert all(value is before[where][name] for name, value in vars(module).items())


class Plain(Loss):
    def __init__(self, student: Dims, teacher: Dims) -> None:
        super().__init__()

    def forward(self, student: Features, teacher: Features, batch: Batch) -> torch.Tensor:
        return (student.pooled - teacher.pooled).square().mean()


FEATURES = Features(torch.ones(2, 3)), Features(torch.zeros(2, 3))


def test_a_loss_of_ones_own_may_return_the_scalar_alone() -> None:
    loss = Plain(Dims(3), Dims(3))
    assert loss(*FEATURES, {}) == 1
    assert loss.with_metrics(*FEATURES, {}).metrics() == {}


def test_metrics_as_a_method_still_count_and_the_class_is_told_what_to_write() -> None:
    with pytest.warns(FutureWarning, match=r"return LossOutput\(loss, metrics\)"):

        class Older(Plain):
            def metrics(self) -> dict[str, torch.Tensor]:
                return {"one": torch.tensor(1.0)}

    assert Older(Dims(3), Dims(3)).with_metrics(*FEATURES, {}).metrics() == {"one": torch.tensor(1.0)}


def test_a_loss_that_returns_something_else_is_named() -> None:
    class Pair(Plain):
        def forward(self, *seen: Any) -> Any:
            return 1.0, {}

    with pytest.raises(TypeError, match=r"Pair\.forward returned a tuple: return a scalar tensor"):
        Pair(Dims(3), Dims(3))(*FEATURES, {})
