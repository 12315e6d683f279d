import ot
import pytest
import torch
from torch.nn import functional as F

from losses import Dims, Features, sinkhorn
from losses.wkd_logit import ClassCost, WKDLogit

K, D = 6, 16
DIMS = Dims(D, classes=K)
Double = torch.float64


def data(samples: int = 12, seed: int = 0) -> tuple[Features, Features, dict[str, torch.Tensor]]:
    """Teacher features around class means that are all positive, as behind a ReLU; a third without label."""
    rng = torch.Generator().manual_seed(seed)
    means = torch.rand(K, D, generator=torch.Generator().manual_seed(99), dtype=Double)
    label = torch.randint(K, (samples,), generator=rng)
    h = means[label] + 0.1 * torch.randn(samples, D, generator=rng, dtype=Double)
    z_student, z_teacher = (4 * torch.randn(samples, K, generator=rng, dtype=Double) for _ in range(2))
    label[::3] = -1
    return Features(h, logits=z_student), Features(h, logits=z_teacher), {"label": label}


def make(**keywords: float) -> WKDLogit:
    """A loss that has seen 64 samples of every class."""
    loss = WKDLogit(DIMS, DIMS, **keywords).double()  # type: ignore[arg-type]
    loss(*data(64 * K, seed=1))
    return loss.eval()


def naive(loss: WKDLogit, student: Features, teacher: Features, label: torch.Tensor) -> tuple[float, float]:
    """The target's term and the transport, one sample at a time, without the target's row and column."""
    first = second = 0.0
    cost = loss.cost()
    for z_s, z_t, y in zip(student.logits, teacher.logits, label.tolist(), strict=True):
        y = int(z_t.argmax()) if y < 0 else y
        first -= float(z_t.softmax(0)[y] * z_s.log_softmax(0)[y])
        others = torch.arange(K) != y
        c = cost[others][:, others]
        log_s, log_t = (F.log_softmax(z[others] / loss.temperature, 0) for z in (z_s, z_t))
        plan = sinkhorn(c, loss.epsilon, loss.iterations, log_row=log_t, log_column=log_s)
        second += float((plan * c).sum())
    return first / len(label), second / len(label)


@pytest.mark.parametrize("iterations", [1, 10])
def test_is_the_definition_written_out(iterations: int) -> None:
    loss = make(iterations=iterations)
    student, teacher, batch = data()
    target, transport = naive(loss, student, teacher, batch["label"])
    assert transport > 0
    value = loss(student, teacher, batch).item()
    loss.transport = 0.0
    alone = loss(student, teacher, batch).item()
    assert alone == pytest.approx(target, rel=1e-10)
    assert value - alone == pytest.approx(600 * transport, rel=1e-8)


def test_converges_to_the_exact_distance() -> None:
    """With epsilon small against the costs and many iterations: the linear program's optimum, from above."""
    loss = make(temperature=2.0, epsilon=0.03, iterations=20_000)
    student, teacher, batch = data(4)
    y = torch.where(batch["label"] < 0, teacher.logits.argmax(1), batch["label"])[:, None]
    p_s, p_t = (loss._others(x.logits, y) for x in (student, teacher))
    found = loss._transport(p_s, p_t, y)
    assert loss.metrics()["marginal_error"] < 1e-9
    cost = loss.cost().numpy()
    for value, a, b in zip(found, p_s, p_t, strict=True):
        exact = ot.emd2(a.numpy() / a.sum().item(), b.numpy() / b.sum().item(), cost)
        assert exact <= value.item() + 1e-9
        assert value.item() < exact + 0.03


def test_cost_is_the_alignment_of_the_class_means() -> None:
    """CKA by its definition, tr(K H L H) over norms, with K = m m' from the plain means of all samples seen."""
    cost = ClassCost(K, D).double()
    features, target = torch.rand(90, D, dtype=Double), torch.arange(90) % K
    for part in (slice(0, 7), slice(7, 50), slice(50, 90)):
        cost.update(features[part], target[part])
    H = torch.eye(D, dtype=Double) - 1 / D
    kernels = [H @ torch.outer(m, m) @ H for m in (features[target == k].mean(0) for k in range(K))]
    expected = torch.tensor([[1 - float((a @ b).trace() / (a.norm() * b.norm())) for b in kernels] for a in kernels])
    torch.testing.assert_close(cost(), expected.double(), atol=1e-6, rtol=1e-6)
    assert expected[0, 1] > 0.1


def test_classes_not_seen_are_unlike_all_others() -> None:
    cost = ClassCost(K, D)
    torch.testing.assert_close(cost(), 1 - torch.eye(K))
    cost.update(torch.rand(8, D), torch.tensor([0, 1] * 4))
    found = cost()
    assert 0 < found[0, 1] < 1
    found[0, 1] = found[1, 0] = 1
    torch.testing.assert_close(found, 1 - torch.eye(K))


def test_first_batch_and_missing_labels_are_finite() -> None:
    for samples in (1, 5):
        loss = WKDLogit(DIMS, DIMS).double()
        student, teacher, batch = data(samples)
        student.logits.requires_grad_()
        batch["label"].fill_(-1)
        value = loss(student, teacher, batch)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(student.logits.grad).all()
        assert loss.cost.count.sum() == samples


def test_unlabelled_samples_take_the_teachers_class() -> None:
    loss = make()
    student, teacher, _ = data()
    known = loss(student, teacher, {"label": teacher.logits.argmax(1)})
    torch.testing.assert_close(loss(student, teacher, {"label": torch.full((12,), -1)}), known)
    other = (teacher.logits.argmax(1) + 1) % K
    assert (loss(student, teacher, {"label": other}) - known).abs() > 1e-3


def test_statistics_stand_still_in_evaluation() -> None:
    loss = make()
    before = {name: x.clone() for name, x in loss.named_buffers()}
    loss(*data())
    for name, x in loss.named_buffers():
        torch.testing.assert_close(x, before[name], rtol=0, atol=0)


def test_gradient_in_float64() -> None:
    loss = make(transport=10.0)
    student, teacher, batch = data(3)
    z = student.logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(Features(student.pooled, logits=z), teacher, batch), z)


def test_descent_brings_the_student_to_the_teacher() -> None:
    loss = make()
    student, teacher, batch = data()
    z = student.logits.clone().requires_grad_()
    optimiser = torch.optim.Adam([z], lr=0.1)

    def divergence() -> float:
        return F.kl_div((z / 8).log_softmax(1), (teacher.logits / 8).softmax(1), reduction="batchmean").item()

    before = divergence()
    for _ in range(300):
        optimiser.zero_grad()
        loss(Features(student.pooled, logits=z), teacher, batch).backward()
        optimiser.step()
    assert divergence() < before / 2


@pytest.mark.parametrize("epsilon", [0.03, 0.05, 1.0])
def test_extreme_logits_stay_finite_in_fp32(epsilon: float) -> None:
    loss = make(epsilon=epsilon).float()
    student, teacher, batch = data()
    z = (500 * student.logits.float()).requires_grad_()
    value = loss(Features(student.pooled, logits=z), Features(teacher.pooled, logits=-z.detach()), batch)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()


def test_refuses_other_classes() -> None:
    for student, teacher in [(DIMS, Dims(D, classes=7)), (DIMS, Dims(D)), (Dims(D), DIMS), (Dims(D), Dims(D))]:
        with pytest.raises(ValueError, match="logits of the same classes"):
            WKDLogit(student, teacher)
    with pytest.raises(ValueError, match="2 or more"):
        WKDLogit(Dims(D, classes=1), Dims(D, classes=1))
