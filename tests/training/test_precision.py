"""Float32 is float32 on accelerators too: every product of every program says so to the compiler."""

import re

import pytest
from tiny_runs import rl_config, sft_config, write_small_world

from vr1_jax.config import WatchConfig
from vr1_jax.models.base import computing_in
from vr1_jax.tools.plan.programs import Outline, programs
from vr1_jax.training import setup


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Which between them compile all programs: T-GRPO that scores its policy, and SFT, both with held-out data."""
    out = tmp_path_factory.mktemp("world") / "world"
    write_small_world(out)
    watch = WatchConfig(evaluate_every=1)
    rl = rl_config(out, out / "tiny", out / "rl", steps=2, updates_per_batch=2, prompts_per_step=8, watch=watch)
    return rl, sft_config(out, out / "sft", watch=watch)


def products(config, dtype: str) -> dict[str, list[str]]:
    """The products of each phase, as they are given to the compiler."""
    outline = Outline(config, setup.read_model_config(config), setup.make_meshes(config))
    found: dict[str, list[str]] = {}
    for program in programs(outline):
        with computing_in(dtype):
            text = program.lower().as_text()
        found.setdefault(program.phase, []).extend(re.findall(r"stablehlo\.dot_general.*", text))
    return found


def test_every_product_of_every_program(configs):
    phases = set()
    for config in configs:
        for phase, found in products(config, "float32").items():
            assert found or phase == "copy"
            assert [product for product in found if "HIGHEST, HIGHEST" not in product] == [], phase
            phases.add(phase)
    assert phases == {"copy", "rollout", "reference", "update", "evaluate", "loss"}


def test_in_bfloat16_products_stay_fast(configs):
    assert not any(
        "HIGHEST" in product for found in products(configs[1], "bfloat16").values() for product in found
    )
