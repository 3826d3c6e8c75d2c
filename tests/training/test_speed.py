"""Tokens a second and MFU of a step, worked out by hand."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_runs import rl_config

from vr1_jax.models import flops
from vr1_jax.models.families import parse_hf_config
from vr1_jax.tools.world.model import tiny_config
from vr1_jax.training import metrics as speed
from vr1_jax.training.metrics import Phases, progress_line
from vr1_jax.types import blank_prompt


@pytest.fixture
def step(tmp_path):
    phases = Phases()
    phases.seconds |= {"rollout": 3.0, "update": 1.0}
    model = parse_hf_config(tiny_config())
    prompt = blank_prompt(2, slices=4, patches=16, tokens=192)
    return rl_config(tmp_path, tmp_path, tmp_path), model, prompt, (8, 48), 400.0, phases


def test_mfu_is_the_updates_flops_over_what_the_devices_could_do(step, monkeypatch):
    devices = [SimpleNamespace(device_kind="NVIDIA A100-SXM4-80GB")] * 4
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "device_count", lambda: len(devices))
    rates = speed.speed(*step)
    needed = flops.update(step[1], flops.Workload(2, 4, 16, 192, 8, 48))
    assert rates == {"tokens_per_second": 100.0, "update_mfu": pytest.approx(needed / (4 * 312e12))}


def test_no_mfu_on_a_device_without_a_known_peak(step):
    assert speed.speed(*step) == {"tokens_per_second": 100.0}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
    ],
)
def test_devices_are_known_by_jaxs_names(kind, name):
    assert speed.device_name(kind) == name
    assert speed.PEAK_FLOPS[name] > 1e14
    assert speed.device_name("cpu") is None


def test_the_progress_line_tells_results_then_seconds():
    metrics = {"reward": 1.25, "seconds_rollout": 2.0, "seconds_update": 1.0, "seconds_data": 0.0001}
    assert progress_line(3, 9, metrics, ("reward", "kl")) == "step 3/9  reward 1.25  3.0 s (rollout 2, update 1)"


def test_padding_counts_slots_without_a_token_and_patches_of_no_window():
    prompt = {"mask": np.array([[0, 1, 1, 1]] * 2, bool), "patch_windows": np.array([[[0, 1, -1, -1]]] * 2)}
    answered = np.array([[1, 1, 1, 0], [1, 0, 0, 0]], bool)
    assert speed.padding(prompt, answered, 3) == {"padding_tokens": pytest.approx(4 / 14), "padding_patches": 0.5}
