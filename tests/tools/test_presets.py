"""What the shipped configs train with: beside the presets, beside the table in the docs, and how long."""

import re
from pathlib import Path

import numpy as np
import pytest

from vr1_jax.config import load_config
from vr1_jax.tools.presets import PRESETS, list_differences, preset_settings, settings, shown
from vr1_jax.training.optimizer import learning_rate

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.py"))
# The built-in worlds have schedules of their own, adapters a rate.
OTHERS = {"demo", "shortcut", "tgrpo_3b_lora_24gb", "tgrpo_7b_lora_48gb"}
PAPERS = [name for name in CONFIGS if name not in OTHERS]
FILES = {
    "rl": {"ours": "tgrpo_a100", "upstream": "video_r1_upstream"},
    "sft": {"ours": "sft_a100", "upstream": "video_r1_upstream_sft"},
}


def load(name, *overrides):
    return load_config(REPOSITORY / f"configs/{name}.py", overrides)


def differing(name, preset):
    theirs = preset_settings(preset, load(name).stage)
    return {setting for setting, value in settings(load(name)).items() if theirs[setting] != value}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", ["rl", "sft"])
def test_presets_name_settings_that_there_are(preset, stage):
    assert PRESETS[preset][stage].keys() <= settings(load(FILES[stage]["ours"])).keys()


def test_configs_are_what_they_are_called():
    for stage in ("rl", "sft"):
        assert differing(FILES[stage]["ours"], "paper") == set()
        assert differing(FILES[stage]["upstream"], "upstream") == set()
        assert differing(FILES[stage]["ours"], "upstream")
    assert differing("tgrpo_a100", "fixed") == {"grpo.placement"}
    assert differing("grpo_a100", "paper") == {"grpo.alpha", "rollout.shuffled_group"}
    assert differing("tgrpo_no_images", "paper") == {"data.image_share"}
    for name in ("tgrpo_zero", "tgrpo_3b_h200", "tgrpo_v5p"):
        assert differing(name, "paper") == set()


def test_differences_are_listed_one_a_line():
    lines = list_differences(load("tgrpo_a100", "--prompts-per-step", "16", "--grpo.beta", "0.02", "--seed", "3"))
    assert "prompts_per_step 16: paper and fixed 8, upstream 4" in lines
    assert "grpo.beta 0.02: paper and upstream and fixed 0.04" in lines
    assert "optimizer.total_steps null: upstream 65768" in lines
    assert "grpo.placement reward: fixed advantage" in lines
    others = [line for line in lines if not re.match(r"(\w+\.)*\w+ \S+: (paper|upstream|fixed)", line)]
    assert others == []
    assert not any(
        re.match(r"seed|run|model|mesh|watch|data\.(records|video_buckets|loss_on)", line) for line in lines
    )


@pytest.mark.parametrize("name", PAPERS)
def test_rates_are_upstreams(name):
    """In RL the rate hardly falls; in SFT it falls in a line, to 0 at the end."""
    config = load(name)
    steps = np.arange(0, config.steps, 100)
    rates = np.array([float(learning_rate(config.optimizer)(step)) for step in steps])
    if config.stage == "rl":
        epoch = 263_071 / 4
        expected = 1e-6 * 0.5 * (1 + np.cos(np.pi * steps / epoch))
        np.testing.assert_allclose(rates, expected, rtol=1e-3)
        assert config.steps == 1000
    else:
        np.testing.assert_allclose(rates, 1e-6 * (1 - steps / np.ceil(165_575 / 8)), atol=1e-11)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_run_can_be_made_longer(name):
    config = load(name)
    more = ["--steps", str(2 * config.steps)]
    if name in ("demo", "shortcut") or config.stage == "sft":  # whose rate ends with them
        more += ["--optimizer.total-steps", str(2 * config.steps)]
    assert load(name, *more).steps == 2 * config.steps


def table(stage):
    """(setting, upstream, ours) of the docs."""
    text = (REPOSITORY / "docs/upstream.md").read_text("utf-8")
    section = text.split(f"<!-- {stage} -->")[1].split("\n\n")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[2:]]
    return {name.strip("`"): (upstream, ours) for name, _, upstream, ours, _ in rows}


@pytest.mark.parametrize("stage", ["rl", "sft"])
def test_the_table_in_the_docs_says_what_the_configs_do(stage):
    ours, upstream = (settings(load(FILES[stage][whose])) for whose in ("ours", "upstream"))
    rows = table(stage)
    for name, cells in rows.items():
        assert cells == (shown(upstream[name]), shown(ours[name])), name
    assert differing(FILES[stage]["ours"], "upstream") <= rows.keys()
