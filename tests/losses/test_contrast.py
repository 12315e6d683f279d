"""GlobalContrast, InfoNCE and their critics against definitions written out, and the properties they promise."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from losses import Dims, Features, GlobalContrast, InfoNCE, SigLIP
from losses.bank import draw_negatives
from losses.base import Loss
from losses.critic import CRITICS, LipschitzProjection, SpectralProjection
from losses.feature_bank import FeatureBank
from losses.queue import Queue

STUDENT, TEACHER = Dims(12), Dims(20)
Double = torch.float64


def batch(n: int, label: int | None = None, group: int | None = None) -> dict[str, torch.Tensor]:
    return {
        "label": torch.full((n,), -1) if label is None else torch.arange(n) % label,
        "group": torch.full((n,), -1) if group is None else torch.arange(n) % group,
    }


def pairs(n: int, seed: int = 0) -> tuple[Features, Features]:
    rng = torch.Generator().manual_seed(seed)
    s, t = torch.randn(n, 12, generator=rng, dtype=Double), torch.randn(n, 20, generator=rng, dtype=Double)
    return Features(s), Features(t)


def warm(loss: Loss) -> Loss:
    """A loss whose running statistics have seen data, at rest."""
    loss = loss.double()
    for seed in range(5):
        loss(*pairs(16, seed), batch(16))
    return loss.eval()


def log_weight(loss: GlobalContrast, h: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    unknown, filled = torch.full_like(label, -1), torch.ones_like(label, dtype=torch.bool)
    columns = {"teacher": h, "norm": h.norm(dim=1), "label": label, "group": unknown, "index": unknown}
    return loss._log_weight(columns | {"filled": filled}, slice(0, len(h)))


def test_info_nce_is_the_definition_written_out() -> None:
    loss = InfoNCE(STUDENT, TEACHER, dim=8, temperature=0.1).double()
    student, teacher = pairs(7)
    s, t = loss.student_projection(student.pooled), loss.teacher_projection(teacher.pooled)
    expected = 0.0
    for i in range(7):
        over_teachers = sum(torch.exp((s[i] @ t[j] - s[i] @ t[i]) / 0.1) for j in range(7))
        over_students = sum(torch.exp((s[j] @ t[i] - s[i] @ t[i]) / 0.1) for j in range(7))
        expected += (over_teachers.log() + over_students.log()) / 14
    torch.testing.assert_close(loss(student, teacher, batch(7)), expected)


def test_global_contrast_without_extras_is_info_nce_on_standardised_teachers() -> None:
    loss = warm(GlobalContrast(STUDENT, TEACHER, dim=8, critic="cosine", queue=0, exclude=(), discount=False))
    info_nce = InfoNCE(STUDENT, TEACHER, dim=8).double()
    info_nce.student_projection, info_nce.teacher_projection = loss.student_projection, loss.teacher_projection
    student, teacher = pairs(9, seed=7)
    standardised = Features(loss.standardise(teacher.pooled))
    torch.testing.assert_close(loss(student, teacher, batch(9)), info_nce(student, standardised, batch(9)))


@pytest.mark.parametrize("link", ["log_softmax", "linear", "bounded", "log_bounded"])
@pytest.mark.parametrize("critic", ["lipschitz", "spectral", "cosine"])
def test_gradient_in_float64(link: str, critic: str) -> None:
    loss = warm(GlobalContrast(STUDENT, TEACHER, dim=6, link=link, critic=critic, queue=8, temperature=0.5))
    _, teacher = pairs(6, 3)

    def of_student(x: torch.Tensor) -> torch.Tensor:
        return loss(Features(x), teacher, batch(6))

    assert torch.autograd.gradcheck(of_student, pairs(6, 3)[0].pooled.requires_grad_())


def test_linear_link_is_positive_minus_mean_negative() -> None:
    loss = warm(GlobalContrast(STUDENT, TEACHER, dim=6, link="linear", queue=0, exclude=(), discount=False))
    student, teacher = pairs(5, 2)
    g = loss.student_projection(student.pooled) @ loss.teacher_projection(loss.standardise(teacher.pooled)).T
    negative = (g.sum() - g.diagonal().sum()) / 20
    torch.testing.assert_close(loss(student, teacher, batch(5)), negative - g.diagonal().mean())


@pytest.mark.parametrize("weighting", ["mean", "sum"])
@pytest.mark.parametrize("link", ["bounded", "log_bounded"])
def test_bounded_critic_is_crds_probability_written_out(link: str, weighting: str) -> None:
    """`h = e / (e + M Z)`, Z the mean of e over the negatives of the first batch ever seen, each way the same."""
    keywords = {"dim": 6, "queue": 0, "exclude": (), "discount": False, "temperature": 0.5, "critic": "cosine"}
    loss = GlobalContrast(STUDENT, TEACHER, link=link, weighting=weighting, **keywords).double()  # type: ignore[arg-type]
    first = pairs(5, 1)
    loss(*first, batch(5))
    loss.eval()
    others = ~torch.eye(5, dtype=torch.bool)

    def exponentials(student: Features, teacher: Features) -> torch.Tensor:
        s, t = loss.student_projection(student.pooled), loss.teacher_projection(loss.standardise(teacher.pooled))
        return (s @ t.T / 0.5).exp()

    z = exponentials(*first)[others].mean()
    student, teacher = pairs(5, 2)
    e = exponentials(student, teacher)
    h = e / (e + 4 * z)
    scale = 4 if weighting == "sum" else 1
    if link == "bounded":
        expected = scale * h[others].mean() - h.diagonal().mean()
    else:
        expected = -scale * (1 - h)[others].log().mean() - h.diagonal().log().mean()
    torch.testing.assert_close(loss(student, teacher, batch(5)), expected)


def test_past_samples_are_negatives_at_the_projections_of_now() -> None:
    """The queue's part, written out: an earlier batch counts as further columns, at the projections of now."""
    loss = GlobalContrast(STUDENT, TEACHER, dim=6, queue=8, exclude=(), discount=True, critic="cosine").double()
    past = pairs(8, 1)
    loss(*past, batch(8))
    loss.eval()
    h_past = loss.queue.read("teacher").double()
    torch.testing.assert_close(loss.queue.read("norm").double(), h_past.norm(dim=1), rtol=1e-5, atol=1e-5)
    student, teacher = pairs(5, 2)
    h = loss.standardise(teacher.pooled)
    everything = torch.cat([h, h_past])
    s = torch.cat([loss.student_projection(student.pooled), loss.queue.read("student").double()]).detach()
    t = loss.teacher_projection(everything).detach()
    weight = ((0.5 - F.cosine_similarity(h[:, None], everything[None], dim=2)) / 0.5).clamp(1e-4, 1)
    weight[:, :5].fill_diagonal_(1)
    target, tau = torch.arange(5), loss.temperature
    one = F.cross_entropy(s[:5] @ t.T / tau + weight.log(), target)
    other = F.cross_entropy(t[:5] @ s.T / tau + weight.log(), target)
    torch.testing.assert_close(loss(student, teacher, batch(5)), (one + other) / 2, rtol=1e-5, atol=1e-5)


def test_excluded_samples_do_not_matter() -> None:
    """With two labels, a sample of the same label may be anything: it is no negative."""
    loss = warm(GlobalContrast(STUDENT, TEACHER, dim=6, queue=0, exclude=("label",), discount=False))
    student, teacher = pairs(6, 1)
    weight = log_weight(loss, teacher.pooled, batch(6, label=2)["label"]).exp()
    same = torch.arange(6)[:, None] % 2 == torch.arange(6)[None] % 2
    torch.testing.assert_close(weight, (~same | torch.eye(6, dtype=torch.bool)).to(Double))
    all_alike = {"label": torch.zeros(6, dtype=torch.int64), "group": torch.full((6,), -1)}
    assert loss(student, teacher, all_alike) == 0  # nothing left to tell the pair from


def test_unknown_labels_and_groups_exclude_nothing() -> None:
    loss = warm(GlobalContrast(STUDENT, TEACHER, dim=6, queue=0, discount=False))
    teacher = pairs(6, 1)[1].pooled
    assert (log_weight(loss, teacher, batch(6)["label"]) == 0).all()


def test_discount_follows_teacher_similarity() -> None:
    loss = warm(GlobalContrast(STUDENT, TEACHER, dim=6, queue=0, exclude=()))
    a = torch.randn(20, dtype=Double)
    b = torch.randn(20, dtype=Double)
    b -= (b @ a) / (a @ a) * a  # at a right angle
    weight = log_weight(loss, torch.stack([a, 2 * a, b, -a]), torch.full((4,), -1)).exp()
    expected = torch.tensor([1.0, 1e-4, 1.0, 1.0], dtype=Double)
    torch.testing.assert_close(weight[0], expected)


def test_empty_slots_of_the_queue_do_not_count() -> None:
    torch.manual_seed(0)
    queued = GlobalContrast(STUDENT, TEACHER, dim=6, queue=512).double()
    torch.manual_seed(0)
    plain = GlobalContrast(STUDENT, TEACHER, dim=6, queue=0).double()
    first = queued(*pairs(8), batch(8)), plain(*pairs(8), batch(8))
    torch.testing.assert_close(*first)
    second = queued(*pairs(8, 1), batch(8)), plain(*pairs(8, 1), batch(8))
    assert second[0] > second[1] + 0.1  # the eight samples before are negatives now


def test_queue_is_first_in_first_out() -> None:
    queue = Queue(5, x=(0, torch.int64))
    for start in range(0, 9, 3):
        queue.push(x=torch.arange(start, start + 3))
        held = set(queue.read("x")[queue.filled].tolist())
        assert held == set(range(max(0, start + 3 - 5), start + 3))
    queue.push(x=torch.arange(100, 120))
    assert set(queue.read("x").tolist()) == set(range(115, 120))


def test_queue_travels_in_the_state_dict() -> None:
    loss = GlobalContrast(STUDENT, TEACHER, dim=6, queue=16).double()
    loss(*pairs(8), batch(8))
    other = GlobalContrast(STUDENT, TEACHER, dim=6, queue=16).double()
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(*pairs(8, 1), batch(8)), loss(*pairs(8, 1), batch(8)))


def banked(bank: int, samples: int, **keywords: Any) -> GlobalContrast:
    torch.manual_seed(0)
    return GlobalContrast(STUDENT, TEACHER, dim=6, bank=bank, samples=samples, **keywords).double()


def placed(*index: int) -> dict[str, torch.Tensor]:
    return batch(len(index)) | {"index": torch.tensor(index)}


def test_a_bank_drawn_whole_is_a_queue_as_long_as_the_set() -> None:
    """Once every sample has come by once, both hold the same rows; a sample that comes by again replaces its row."""
    torch.manual_seed(0)
    queued = GlobalContrast(STUDENT, TEACHER, dim=6, queue=16).double()
    bank = banked(16, 16, queue=0)
    for loss in (queued, bank):
        loss(*pairs(8), placed(*range(8)))
        loss(*pairs(8, 1), placed(*range(8, 16)))
        loss.eval()
    probe = pairs(8, 2), placed(*range(8))
    torch.testing.assert_close(bank(*probe[0], probe[1]), queued(*probe[0], probe[1]))
    bank.train()(*pairs(2, 3), placed(5, 5))
    s = bank.student_projection(pairs(2, 3)[0].pooled)
    torch.testing.assert_close(bank.bank.student[5].double(), s[1], rtol=1e-2, atol=1e-2)  # the last of the two
    assert bank.bank.filled.all()


def test_rows_of_a_bank_that_hold_no_sample_do_not_count() -> None:
    bank, plain = banked(64, 64, queue=0), banked(0, 64, queue=0)
    torch.testing.assert_close(bank(*pairs(8), placed(*range(8))), plain(*pairs(8), placed(*range(8))))
    later = placed(*range(8, 16))
    assert bank(*pairs(8, 1), later) > plain(*pairs(8, 1), later) + 0.1


def test_a_bank_draws_each_row_alike_and_none_twice() -> None:
    bank = FeatureBank(samples=10, drawn=4, x=(0, torch.int64))
    counts = torch.zeros(10)
    for _ in range(1000):
        drawn = bank.draw()
        assert drawn.unique().numel() == 4
        assert torch.equal(drawn, bank.draw())  # the same on every rank, and after a resume
        counts[drawn] += 1
        bank.write(torch.tensor([0]), x=torch.tensor([1]))
    assert ((counts / 1000 - 0.4).abs() < 0.08).all()  # five standard deviations
    assert sorted(FeatureBank(3, 8, x=(0, torch.int64)).draw().tolist()) == [0, 1, 2]


def test_a_bank_travels_in_the_state_dict() -> None:
    loss, other = banked(8, 20), banked(8, 20)
    loss(*pairs(8), placed(*range(8)))
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(*pairs(8, 1), placed(*range(8))), loss(*pairs(8, 1), placed(*range(8))))


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"critic": "cosine", "discount": False},
        {"bank": 6, "samples": 30},
        {"negatives": 6, "samples": 30},
        {"critic": "spectral", "standardise": False, "discount": False},
    ],
)
def test_a_large_batch_is_compared_row_block_by_row_block(
    keywords: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same loss and gradients, although queue, bank and statistics change between forward and backward."""
    found = []
    for largest in (100, 5):
        monkeypatch.setattr("losses.rows.LARGEST_WHOLE", largest)
        monkeypatch.setattr("losses.rows.BLOCK_ELEMENTS", 60)
        torch.manual_seed(0)
        loss = GlobalContrast(STUDENT, TEACHER, dim=6, queue=9, **keywords).double()
        loss(*pairs(8), placed(*range(8)))
        student, teacher = pairs(10, 1)
        x = student.pooled.requires_grad_()
        value = loss(Features(x), teacher, placed(*range(5, 15)) | {"label": torch.arange(10) % 4})
        value = value + loss(*pairs(10, 2), placed(*range(10)))  # what the first one reads has changed meanwhile
        value.backward()
        assert x.grad is not None
        found.append([value, x.grad, *(p.grad for p in loss.parameters() if p.grad is not None)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("largest", [10, 200])
def test_a_large_batch_holds_no_matrix_of_its_pairs(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("losses.rows.LARGEST_WHOLE", largest)
    monkeypatch.setattr("losses.rows.BLOCK_ELEMENTS", 10 * 100)
    loss, sizes = GlobalContrast(STUDENT, TEACHER, dim=6, queue=0).double(), [0]
    student, teacher = pairs(100)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        loss(Features(student.pooled.requires_grad_()), teacher, batch(100))
    assert (max(sizes) >= 100 * 100) == (largest == 200)


def test_a_bank_needs_the_size_of_the_set_and_an_index() -> None:
    with pytest.raises(ValueError, match="set samples to the size of the training set"):
        GlobalContrast(STUDENT, TEACHER, bank=8)
    with pytest.raises(ValueError, match='batch\\["index"\\]'):
        banked(8, 20)(*pairs(8), batch(8))


def own_negatives(**keywords: Any) -> GlobalContrast:
    """Critic and bank of float64, filled by 30 samples of 3 labels in order."""
    torch.manual_seed(0)
    loss = GlobalContrast(STUDENT, TEACHER, dim=6, negatives=5, samples=30, discount=False, **keywords).double()
    for seed in range(3):
        loss(*pairs(10, seed), placed(*range(10 * seed, 10 * seed + 10)) | {"label": torch.arange(10) % 3})
    return loss.eval()


@pytest.mark.parametrize("weighting", ["mean", "sum"])
@pytest.mark.parametrize("exclude", [(), ("label",)])
def test_negatives_of_its_own_written_out(weighting: Any, exclude: Any) -> None:
    """Each sample against so many rows of the bank, by CRD's draw; neither queue nor batch takes part."""
    loss = own_negatives(link="linear", weighting=weighting, exclude=exclude)
    assert loss.bank is not None
    (student, teacher), index = pairs(4, 7), torch.tensor([3, 12, 20, 29])
    s = loss.student_projection(student.pooled)
    t = loss.teacher_projection(loss.standardise(teacher.pooled))
    past_s = loss.bank.student.double()
    past_t = loss.teacher_projection(loss.bank.teacher.double())
    own = placed(*index.tolist()) | {"label": index % 10 % 3}
    labels = loss.bank.label if exclude else torch.full((30,), -1)
    drawn = draw_negatives(index, labels, 5, loss.bank.keys(4))
    assert not (drawn == index[:, None]).any()
    assert all(len(row.unique()) == 5 for row in drawn)
    assert not exclude or not (loss.bank.label[drawn] == own["label"][:, None]).any()
    scale, expected = 5 if weighting == "sum" else 1, torch.zeros((), dtype=Double)
    for i in range(4):
        expected += scale * (past_t[drawn[i]] @ s[i]).mean() / 2 + scale * (past_s[drawn[i]] @ t[i]).mean() / 2
        expected -= s[i] @ t[i]
    torch.testing.assert_close(loss(student, teacher, own), expected / 4, rtol=1e-6, atol=1e-7)


def test_a_draw_for_each_sample_has_the_expectation_of_one_draw_for_the_batch() -> None:
    """Where the loss is a sum over anchors, it is linear in their draws; what differs is how anchors vary together."""
    each = own_negatives(link="linear", exclude=())
    shared = banked(5, 30, queue=0, link="linear", exclude=(), discount=False)
    state = each.state_dict()
    shared.load_state_dict(state)
    shared.eval()
    assert each.bank is not None
    assert shared.bank is not None
    probe = pairs(1, 7), placed(4)  # of one sample, as the shared form has the batch's others as negatives too
    found = []
    for loss in (each, shared):
        values = []
        for step in range(300):
            loss.bank.steps.fill_(step)  # type: ignore[union-attr]
            values.append(loss(*probe[0], probe[1]))
        found.append(torch.stack(values).detach())
    difference, error = found[0].mean() - found[1].mean(), (found[0].var() / 300 + found[1].var() / 300).sqrt()
    assert difference.abs() < 4 * error
    assert found[0].std() > 0


def test_all_rows_are_negatives_if_there_are_no_more() -> None:
    few, more = own_negatives(), own_negatives()
    few.negatives, more.negatives = 29, 500
    probe = pairs(4, 7), placed(0, 1, 2, 3)
    torch.testing.assert_close(few(*probe[0], probe[1]), more(*probe[0], probe[1]))


@pytest.mark.parametrize("critic", ["lipschitz", "spectral", "cosine"])
@pytest.mark.parametrize("centred", [True, False])
def test_products_are_those_of_the_projection(critic: str, centred: bool) -> None:
    torch.manual_seed(0)
    projection = CRITICS[critic](12, 8, centred=centred).double()
    x, anchors = torch.randn(9, 12, dtype=Double) + 0.5, torch.randn(4, 8, dtype=Double)
    projection.update(x)
    for parameter in projection.parameters():
        torch.nn.init.normal_(parameter)
    projection.eval()
    found = projection.products(x, x.norm(dim=1), projection.weight)(anchors)
    torch.testing.assert_close(found, anchors @ projection(x).T)


def test_the_spectral_critic_is_its_linear_map_of_norm_one_and_nothing_else() -> None:
    torch.manual_seed(0)
    projection = SpectralProjection(12, 8).double()
    with torch.no_grad():
        projection.linear.parametrizations.weight.original.mul_(50)
    for _ in range(50):
        projection(torch.zeros(1, 12, dtype=Double))
    projection.eval()
    weight = projection.weight.detach()
    assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1, abs=1e-6)
    x = 1e3 * torch.randn(5, 12, dtype=Double)
    torch.testing.assert_close(projection(x), x @ weight.T + projection.linear.bias)  # neither scaled nor clipped


def test_without_standardisation_the_critic_sees_the_teacher_as_it_is() -> None:
    loss = warm(GlobalContrast(STUDENT, TEACHER, dim=8, critic="cosine", queue=0, standardise=False, discount=False))
    info_nce = InfoNCE(STUDENT, TEACHER, dim=8).double()
    info_nce.student_projection, info_nce.teacher_projection = loss.student_projection, loss.teacher_projection
    student, teacher = pairs(9, seed=7)
    torch.testing.assert_close(loss(student, teacher, batch(9)), info_nce(student, teacher, batch(9)))


def test_lipschitz_bound_holds_between_random_and_adversarial_pairs() -> None:
    """|p(x) - p(y)| <= |x - y| / r, also where gradient ascent looks for a violation."""
    torch.manual_seed(0)
    projection = LipschitzProjection(12, 8).double()
    with torch.no_grad():
        projection.linear.parametrizations.weight.original.mul_(50)  # as an optimiser would, to win
    for _ in range(50):
        projection.update(torch.randn(32, 12, dtype=Double))
        projection(torch.randn(32, 12, dtype=Double))
    projection.eval()
    x = torch.randn(256, 12, dtype=Double, requires_grad=True)
    step = torch.randn(256, 12, dtype=Double).mul_(0.1).requires_grad_()
    ascent = torch.optim.Adam([x, step], lr=0.02)

    def ratio() -> torch.Tensor:
        return (projection(x) - projection(x + step)).norm(dim=1) / (step.norm(dim=1) / projection.norm)

    assert ratio().max() <= 1 + 1e-3
    for _ in range(200):
        ascent.zero_grad()
        (-ratio().sum()).backward()
        ascent.step()
    assert 0.95 < ratio().max() <= 1 + 1e-3  # the bound is reached, and not passed


def test_features_of_zeros_have_a_moderate_gradient() -> None:
    """As a head that starts at zero gives them; also before the first step, the critic is Lipschitz."""
    loss = GlobalContrast(STUDENT, TEACHER)
    x = torch.zeros(8, STUDENT.pooled, requires_grad=True)
    loss(Features(x), Features(torch.randn(8, TEACHER.pooled)), batch(8)).backward()
    assert 0 < x.grad.abs().max() < 10
    fresh = LipschitzProjection(12, 8).eval()
    y = 0.01 * torch.randn(20, 12)
    assert ((fresh(y) - fresh(-y)).norm(dim=1) <= (2 * y).norm(dim=1) * 1.01).all()


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"link": "logsoftmax"}, "link: 'logsoftmax' is not one of log_softmax"),
        ({"critic": "Lipschitz"}, "critic: 'Lipschitz' is not one of"),
        ({"weighting": "M"}, "weighting: 'M' is not one of"),
        ({"exclude": "label"}, "exclude: 'l' is not one of label, group"),
        ({"temperature": 0.0}, "temperature: 0.0 is not within"),
        ({"negatives": 8}, "set samples to the size of the training set"),
        ({"negatives": 8, "samples": 1}, "samples must be at least 2"),
        ({"negatives": 8, "bank": 8, "samples": 20}, "set one of them to 0"),
        ({"standardise": False}, "set discount: false"),
    ],
)
def test_what_no_contrast_can_be_made_of_is_refused(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GlobalContrast(STUDENT, TEACHER, **keywords)


def test_critic_stays_lipschitz_while_it_is_trained() -> None:
    """Optimiser steps move W away from the singular vectors that the power iteration knows."""
    torch.manual_seed(0)
    projection = LipschitzProjection(64, 32)
    optimizer = torch.optim.AdamW(projection.parameters(), lr=2e-3)
    x, y = torch.randn(256, 64), torch.randn(256, 32)
    projection.update(x)
    for _ in range(100):
        optimizer.zero_grad()
        weight = projection.weight
        assert torch.linalg.matrix_norm(weight.detach(), 2) < 1.1
        (projection(x, weight) * y).mean().neg().backward()
        optimizer.step()


def test_own_past_is_no_negative() -> None:
    loss = GlobalContrast(STUDENT, TEACHER, dim=6, queue=16, discount=False).double()
    same = batch(8) | {"index": torch.arange(8)}
    loss(*pairs(8), same)
    loss.eval()
    known, unknown = loss(*pairs(8, 1), same), loss(*pairs(8, 1), batch(8))
    alone = loss(*pairs(8, 1), same | {"index": torch.arange(8) + 8})
    torch.testing.assert_close(alone, unknown)
    assert known < unknown - 1e-3


@pytest.mark.parametrize("link", ["bounded", "log_bounded"])
def test_normaliser_waits_for_negatives_and_does_not_overflow(link: Any) -> None:
    loss = GlobalContrast(STUDENT, TEACHER, dim=6, queue=0, link=link, critic="cosine", temperature=0.01)
    loss(*(Features(x.pooled.float()) for x in pairs(1)), batch(1))
    student, teacher = (Features(x.pooled.float().requires_grad_()) for x in pairs(8))
    value = loss(student, teacher, batch(8))
    value.backward()
    assert torch.isfinite(loss.log_normaliser)
    assert torch.isfinite(value)
    assert student.pooled.grad is not None
    assert 0 < student.pooled.grad.norm() < torch.inf


@pytest.mark.parametrize("kind", [InfoNCE, GlobalContrast, SigLIP])
@pytest.mark.parametrize("start", [0.01, 1.0])
def test_temperature_comes_back_from_its_bounds(kind: Any, start: float) -> None:
    own = {"scale": 1 / start} if kind is SigLIP else {"temperature": start}
    loss = kind(STUDENT, TEACHER, dim=6, **own)
    outward = -1.0 if start < 0.1 else 1.0
    with torch.no_grad():
        loss.log_temperature += outward  # as an optimiser might
    loss(*(Features(x.pooled.float()) for x in pairs(8)), batch(8)).backward()
    assert float(loss.log_temperature.detach().exp()) == pytest.approx(start)
    assert loss.log_temperature.grad != 0


@pytest.mark.parametrize(
    ("label", "group", "queue", "negatives"),
    [(1, None, 32, 0), (None, 1, 32, 0), (2, None, 0, 8), (None, None, 0, 15), (None, None, 32, 15 + 32)],
)
def test_the_log_counts_negatives(label: int | None, group: int | None, queue: int, negatives: int) -> None:
    """Without an index, a sample's own past in the queue counts as another sample."""
    loss = GlobalContrast(STUDENT, TEACHER, dim=8, queue=queue).double()
    for seed in range(3):
        metrics = loss.with_metrics(*pairs(16, seed), batch(16, label, group)).metrics
    assert metrics()["negatives"] == negatives


def test_metrics_show_a_collapse() -> None:
    loss = warm(GlobalContrast(STUDENT, TEACHER, dim=8))
    healthy = loss.with_metrics(*pairs(16), batch(16)).metrics()
    same = Features(torch.ones(16, 12, dtype=Double))
    collapsed = loss.with_metrics(same, pairs(16)[1], batch(16)).metrics()
    assert healthy["effective_rank"] > 4
    assert collapsed["similarity_gap"].abs() < 1e-6
    assert F.relu(collapsed["projected_std"]) < 1e-6 < healthy["projected_std"]
