"""What the report says of numbers: each verdict is earned, and each can be lost."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vr1_jax.tools.report.findings import find
from vr1_jax.tools.report.run_files import Run
from vr1_jax.tools.report.write import _survey

STEPS = 100


def verdicts(config=None, refused=(), **curves):
    rng = np.random.default_rng(0)
    lines = [{"step": step} for step in range(STEPS)]
    healthy = {"reward": (1, 1.5), "accuracy": (0.3, 0.7), "temporal_gap": (0, 0.3), "length": (100, 110)}
    healthy |= {"entropy": (1, 0.8), "grad_norm": (1, 1), "sampler_gap_mean": (0.01, 0.01), "skipped": (0, 0)}
    for name, ends in (healthy | curves).items():
        for line, value in zip(lines, np.linspace(*ends, STEPS), strict=True):
            line[name] = float(value + rng.normal(0, 0.02) * (name in ("reward", "accuracy", "temporal_gap")))
    run = Run(Path("run"), lines, {"config": config or {}}, {}, Counter(refused), {})
    columns, _ = _survey(run, 0.5)
    return {finding["question"]: finding for finding in find(run, columns)}


def test_a_healthy_run_is_called_so():
    assert {finding["verdict"] for finding in verdicts().values()} == {"good"}


@pytest.mark.parametrize(
    ("curves", "question", "verdict"),
    [
        ({"accuracy": (0.3, 0.3)}, "Is it learning?", "watch"),
        ({"accuracy": (0.7, 0.3)}, "Is it learning?", "bad"),
        ({"temporal_gap": (0.3, 0.0)}, "Does the order of frames matter?", "watch"),
        ({"temporal_gap": (0.0, -0.3)}, "Does the order of frames matter?", "bad"),
        ({"accuracy": (0.3, 0.3)}, "Is it hacking the reward?", "watch"),
        ({"length": (100, 400)}, "Is it hacking the reward?", "watch"),
        ({"entropy": (1, 0.1)}, "Is it hacking the reward?", "watch"),
        ({"cut_off": (0, 0.5)}, "Is it hacking the reward?", "watch"),
        ({"distinct": (1, 0.2)}, "Is it hacking the reward?", "watch"),
        ({"skipped": (0, 3)}, "Is anything broken?", "bad"),
        ({"sampler_gap_mean": (0.01, 0.9)}, "Is anything broken?", "bad"),
        ({"no_signal": (0.2, 0.9)}, "Is anything broken?", "watch"),
    ],
)
def test_each_verdict_can_be_lost(curves, question, verdict):
    assert verdicts(**curves)[question]["verdict"] == verdict


def test_unfinished_and_refused_are_said():
    found = verdicts({"steps": 200}, {"missing": 7})["Is anything broken?"]
    assert found["verdict"] == "watch"
    assert found["details"] == ["7 records were refused: missing 7.", "The run stands at step 100 of 200."]
