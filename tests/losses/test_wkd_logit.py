from pathlib import Path

import numpy as np
import ot
import pytest
import torch
from cases import assert_agree
from torch.nn import functional as F

from losses import Dims, Features
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


def written_cost(features: torch.Tensor, target: torch.Tensor, sharpen: float) -> torch.Tensor:
    """`1 - CKA` of the class means by its definition, tr(K H L H) over norms with K = m m', then sharpened."""
    H = torch.eye(features.shape[1], dtype=Double) - 1 / features.shape[1]
    means = [features[target == k].sum(0) / (target == k).sum() for k in range(int(target.max()) + 1)]
    kernels = [H @ torch.outer(m, m) @ H for m in means]
    cost = [[1 - (a * b).sum() / torch.sqrt((a**2).sum() * (b**2).sum()) for b in kernels] for a in kernels]
    raw = torch.tensor(cost, dtype=Double)
    return 1 - torch.exp(-sharpen * raw) if sharpen else raw


def written(
    z_student: torch.Tensor, z_teacher: torch.Tensor, label: torch.Tensor, cost: torch.Tensor, iterations: int = 10
) -> torch.Tensor:
    """The published form, one sample at a time, without the target's row and column."""
    total = torch.zeros((), dtype=Double)
    for z_s, z_t, y in zip(z_student, z_teacher, label.tolist(), strict=True):
        y = int(z_t.argmax()) if y < 0 else y
        p_s, p_t = (torch.exp(z) / torch.exp(z).sum() for z in (z_s, z_t))
        others = [k for k in range(len(z_s)) if k != y]
        q_s, q_t = (torch.exp(z[others] / 8) / torch.exp(z[others] / 8).sum() for z in (z_s, z_t))
        c = cost[others][:, others]
        kernel = torch.exp(-c / 0.05)
        u = torch.ones(len(others), dtype=Double) / len(others)
        for _ in range(iterations):
            v = q_t / (kernel.T @ u)
            u = q_s / (kernel @ v)
        total = total - p_t[y] * torch.log(p_s[y]) + 600 * (u[:, None] * kernel * v * c).sum()
    return total / len(z_student)


@pytest.mark.parametrize("sharpen", [0.0, 1.0])
@pytest.mark.parametrize(("samples", "classes", "dim"), [(12, 6, 16), (3, 3, 5), (8, 40, 64)])
def test_is_the_published_form_written_out(samples: int, classes: int, dim: int, sharpen: float) -> None:
    dims = Dims(dim, classes=classes)
    loss = WKDLogit(dims, dims, sharpen=sharpen).double()
    seen, target = torch.rand(5 * classes, dim, dtype=Double), torch.arange(5 * classes) % classes
    none = torch.zeros(5 * classes, classes, dtype=Double)
    loss(Features(seen, logits=none), Features(seen, logits=none), {"label": target})
    loss.eval()
    student, teacher = (4 * torch.randn(samples, classes, dtype=Double) for _ in range(2))
    label = torch.randint(-1, classes, (samples,))
    z = student.requires_grad_()
    found = loss(Features(seen, logits=z), Features(seen, logits=teacher), {"label": label})
    assert_agree(found, written(z, teacher, label, written_cost(seen, target, sharpen)), [z])


def test_defaults_are_the_published_ones() -> None:
    loss = WKDLogit(DIMS, DIMS)
    assert (loss.sharpen, loss.temperature, loss.transport, loss.epsilon, loss.iterations) == (1, 8, 600, 0.05, 10)


def test_a_cost_of_elsewhere_is_sharpened_and_stays(tmp_path: Path) -> None:
    raw = torch.rand(K, K)
    raw = ((raw + raw.T) / 2).fill_diagonal_(0)
    np.save(tmp_path / "cost.npy", raw.double().numpy())
    student, teacher, batch = data()
    z = student.logits.requires_grad_()
    for sharpen in (0.0, 0.5, 1.0):
        loss = WKDLogit(DIMS, DIMS, cost_file=str(tmp_path / "cost.npy"), sharpen=sharpen).double()
        cost = 1 - torch.exp(-sharpen * raw.double()) if sharpen else raw.double()
        found, metrics, _ = loss.with_metrics(Features(student.pooled, logits=z), teacher, batch)
        assert_agree(found, written(z, teacher.logits, batch["label"], cost), [z])
        torch.testing.assert_close(loss.class_cost(), cost)
        assert metrics().keys() == {"marginal_error"}
        assert loss.state_dict().keys() == {"fixed"}


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        (np.zeros((K, K - 1)), "has shape"),
        (np.triu(np.ones((K, K)), 1), "not symmetric"),
        (2 * (1 - np.eye(K)), r"not in \[0, 1\]"),
        (np.full((K, K), np.nan), r"not in \[0, 1\]"),
        (np.ones((K, K)), "the diagonal"),
        (np.array([["a"]]), "cannot be read"),
    ],
)
def test_refuses_a_cost_that_is_none(tmp_path: Path, cost: np.ndarray, words: str) -> None:
    np.save(tmp_path / "cost.npy", cost)
    with pytest.raises(ValueError, match=words):
        WKDLogit(DIMS, DIMS, cost_file=str(tmp_path / "cost.npy"))


def test_refuses_a_file_that_is_none_and_opens_no_pickle(tmp_path: Path) -> None:
    np.save(tmp_path / "pickle.npy", np.array([[None]]), allow_pickle=True)
    np.savez(tmp_path / "several.npz", np.zeros((K, K)))
    (tmp_path / "empty.npy").touch()
    for name in ("pickle.npy", "several.npz", "empty.npy", "missing.npy"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read as a numeric NumPy file"):
            WKDLogit(DIMS, DIMS, cost_file=str(tmp_path / name))


def test_converges_to_the_exact_distance() -> None:
    """With epsilon small against the costs and many iterations: the linear program's optimum, from above."""
    loss = make(temperature=2.0, epsilon=0.03, iterations=20_000)
    student, teacher, batch = data(4)
    y = torch.where(batch["label"] < 0, teacher.logits.argmax(1), batch["label"])[:, None]
    p_s, p_t = (loss._others(x.logits, y) for x in (student, teacher))
    found, error = loss._transport(p_s, p_t, y)
    assert error < 1e-9
    cost = loss.class_cost().numpy()
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
    expected = written_cost(features, target, sharpen=0)
    torch.testing.assert_close(cost(), expected, atol=1e-10, rtol=1e-8)
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
        assert loss.running.count.sum() == samples


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
        with pytest.raises(ValueError, match="logits for the same classes"):
            WKDLogit(student, teacher)
    with pytest.raises(ValueError, match="2 or more"):
        WKDLogit(Dims(D, classes=1), Dims(D, classes=1))
