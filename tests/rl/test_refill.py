import pytest

from vr1_jax.rl.refill import of_attempts


def test_metrics_tell_of_everything_sampled():
    """Two batches without signal and a third that has some: the step's accuracy is that of all three."""
    attempts = [
        {"accuracy": 0.0, "accuracy_video": 0.0, "sampled_tokens": 100.0},
        {"accuracy": 1.0, "sampled_tokens": 80.0},  # of images
        {"accuracy": 0.5, "accuracy_video": 0.5, "sampled_tokens": 120.0},
    ]
    metrics = of_attempts(attempts)
    assert metrics.pop("accuracy") == pytest.approx(0.5)
    assert metrics.pop("accuracy_video") == pytest.approx(0.25)
    assert metrics.pop("sampled_tokens") == 300
    assert metrics == {"refilled": 2.0}


def test_one_attempt_stays_as_it_is():
    assert of_attempts([{"reward": 0.3}]) == {"reward": pytest.approx(0.3), "refilled": 0.0}
