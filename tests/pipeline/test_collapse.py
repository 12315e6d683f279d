import pytest

from pipeline.collapse import collapse_warnings

HEALTHY = {
    "wcord/global/similarity_gap": 0.4,
    "wcord/global/projected_std": 0.8,
    "student/effective_rank": 20.0,
    "lr": 0,
}


def test_healthy_metrics_say_nothing() -> None:
    assert collapse_warnings(HEALTHY) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("wcord/global/similarity_gap", 0.001, "wcord/global: true pairs look hardly more alike"),
        ("wcord/global/projected_std", 0.01, "wcord/global: all samples get nearly the same features"),
        ("student/effective_rank", 1.2, "student: the features use few directions (effective rank 1.2)"),
    ],
)
def test_each_sign_of_collapse_is_said_in_words(key: str, value: float, words: str) -> None:
    (warning,) = collapse_warnings(HEALTHY | {key: value})
    assert warning.startswith(words)
