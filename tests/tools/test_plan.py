"""A plan's shapes are those of the loop, its bytes those of real arrays, and it refuses what training refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny_runs import rl_config, sft_config, write_small_world

from vr1_jax.config import WatchConfig
from vr1_jax.data.collate import Bucket
from vr1_jax.errors import UsageError
from vr1_jax.models.families import parse_hf_config
from vr1_jax.models.flops import count_parameters
from vr1_jax.models.qwen25vl import PUBLISHED, size_in_name
from vr1_jax.rl.advantages import GRPOConfig
from vr1_jax.rl.logprobs import TokenScores
from vr1_jax.sampling import sampler
from vr1_jax.sharding import batch_sharding, make_mesh
from vr1_jax.tools.plan.devices import Device, Target, find_target, recognise
from vr1_jax.tools.plan.plan import USABLE_MEMORY, Need, Plan, make_plan, planned_model
from vr1_jax.tools.plan.programs import Outline, Sizes, bytes_per_device, programs
from vr1_jax.tools.plan.report import report
from vr1_jax.tools.world.model import tiny_config
from vr1_jax.training import experience, loop, setup
from vr1_jax.types import Completion

MACHINE = Target("test", Device("test", 16e9, 1e12, 1e12), 8)


def outline_of(config):
    model = setup.read_model_config(config)
    return Outline(config, model, setup.make_meshes(config))


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    """What planning needs of a model: its config."""
    directory = tmp_path_factory.mktemp("model")
    (directory / "config.json").write_text(json.dumps(tiny_config()))
    return directory


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("3B", 3_754_622_976), ("7B", 8_292_166_656), ("32B", 33_452_718_336), ("72B", 73_410_777_344)],
)
def test_published_sizes_have_as_many_parameters_as_their_checkpoints(size, parameters):
    assert count_parameters(PUBLISHED[size]).total == parameters


@pytest.mark.parametrize(
    ("name", "size"),
    [("runs/sft_7b", "7B"), ("Qwen2.5-VL-3B-Instruct", "3B"), ("7b/32b", "32B"), ("runs/x", None), ("2.5b", None)],
)
def test_sizes_in_names(name, size):
    assert size_in_name(name) == size


def test_published_dimensions_are_those_of_the_config_files(shared_data):
    for size in ("3B", "7B"):
        published = json.loads((shared_data / f"hf/Qwen2.5-VL-{size}-Instruct/config.json").read_text())
        assert parse_hf_config(published) == PUBLISHED[size]


def test_a_model_without_config_and_without_size_is_refused(tmp_path):
    config = sft_config(tmp_path, tmp_path / "run")
    assert planned_model(dataclasses.replace(config, model="runs/sft_7b")) == (PUBLISHED["7B"], "published 7B")
    with pytest.raises(UsageError, match=r"model: .*tiny: no config.json.*3B, 7B"):
        planned_model(config)


@pytest.mark.parametrize(
    ("name", "device", "count"),
    [("a100x8", "a100", 8), ("rtx4090", "rtx4090", 1), ("a100-40x2", "a100-40", 2), ("v5p-16", "v5p", 8)],
)
def test_targets(name, device, count):
    target = find_target(name)
    assert (target.device.name, target.count) == (device, count)


@pytest.mark.parametrize("name", ["a100-8", "v5px8", "v5p-3", "a100x0", "gpu", ""])
def test_targets_that_do_not_exist_are_refused(name):
    with pytest.raises(UsageError, match=f"--target {name}: "):
        find_target(name)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA A100-PCIE-40GB", "a100-40"), ("TPU v5 lite", "v5e")],
)
def test_devices_here_are_found_in_the_table(kind, name):
    assert recognise(kind).name == name
    assert recognise("cpu") is None


class Stop(Exception):
    pass


@pytest.fixture
def seen_by_the_loop(tmp_path, monkeypatch):
    """Arguments of the jitted functions in one step of the real loop; in their place are ones that do nothing."""
    world, seen = tmp_path / "world", {}
    write_small_world(world)

    def ordinary(policy, prompts, active, keys, limits, plan):
        seen["generate"] = (policy, prompts, active, keys, limits)
        shape = (active.shape[0], active.shape[1], plan.capacity)
        mesh = prompts[0].tokens.sharding.mesh
        arrays = (np.zeros(shape, np.int32), np.ones(shape, bool), np.zeros(shape, np.float32))
        return Completion(*jax.device_put((*arrays, np.ones(shape[:2], bool)), batch_sharding(mesh)))

    def score(model, prompt, tokens, microbatches):
        seen["score"] = (model, prompt, tokens)
        logps = jax.device_put(np.zeros(tokens.shape, np.float32), batch_sharding(tokens.sharding.mesh))
        return TokenScores(logps, logps)

    def update(state, batch, **options):
        seen["update"] = (state, batch)
        raise Stop

    monkeypatch.setattr(sampler, "generate", ordinary)
    monkeypatch.setattr(experience, "score_batch", score)
    monkeypatch.setattr(loop, "grpo_step", update)

    def step(**changes):
        algorithm = dataclasses.replace(GRPOConfig.paper(), beta=0.0)
        config = rl_config(
            world,
            world / "tiny",
            tmp_path / "run",
            from_scratch=True,
            prompts_per_step=8,
            grpo=algorithm,
            **changes,
        )
        with pytest.raises(Stop):
            loop.train(config)
        return config, seen

    return step


def assert_same(actual, planned):
    for (path, a), p in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(planned), strict=True):
        name = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (p.shape, p.dtype), name
        if p.sharding is not None:
            assert a.sharding.is_equivalent_to(p.sharding, a.ndim), name


def test_the_plans_shapes_are_those_of_the_loop(seen_by_the_loop):
    config, seen = seen_by_the_loop(updates_per_batch=2, steps=1)
    outline = outline_of(config)
    rows, slices = seen["update"][1].prompt.patches.shape[:2]
    kind, bucket = next((kind, b) for kind, b in outline.buckets if b.slices == slices)
    groups = outline.groups(kind)
    assert_same(seen["generate"], outline.sampling_arguments(bucket, groups)[:-1])
    assert_same(seen["score"], (outline.reference, *outline.scored(bucket)))
    assert_same(seen["update"], (outline.state, outline.experience(bucket)))
    assert rows == 4


def test_evaluation_is_planned_as_it_runs(model_directory, tmp_path):
    """In one shape for all held-out questions of a kind; supervised runs also compute a loss there."""
    config = sft_config(tmp_path, tmp_path / "run", model=str(model_directory))
    data = dataclasses.replace(config.data, video_buckets=(Bucket(4, 16, 192), Bucket(2, 32, 160)))
    watch = WatchConfig(evaluate_every=2, evaluate_answers=3)
    found = list(programs(outline_of(dataclasses.replace(config, data=data, watch=watch))))
    expected = ["copy", *["update"] * 3, *["evaluate", "loss"] * 2]
    assert [program.phase for program in found] == expected
    _, prompts, active, *_, plan = found[4].arguments
    assert prompts[0].patches.shape[:3] == (4, 4, 32)
    assert (prompts[0].tokens.shape[1], plan.groups, active.shape) == (192, (3, 3, 3), (4, 9))
    assert found[5].arguments[2].shape == (4, 1, 48)


def test_bytes_are_those_of_real_arrays(model_directory, tmp_path):
    config = sft_config(tmp_path, tmp_path / "run", model=str(model_directory))
    state = outline_of(config).state
    real = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), state)
    on_first = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(real))
    assert bytes_per_device(state) == on_first < sum(x.nbytes for x in jax.tree.leaves(real)) / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_per_step": 6}, "prompts_per_step 6"),
        ({"data": {"video_buckets": ()}}, None),
        ({"mesh": {"fsdp": 3}}, "mesh"),
    ],
)
def test_what_training_refuses_is_refused(model_directory, tmp_path, changes, message):
    config = sft_config(tmp_path, tmp_path / "run", model=str(model_directory))
    nested = {
        k: dataclasses.replace(getattr(config, k), **v) if isinstance(v, dict) else v for k, v in changes.items()
    }
    config = dataclasses.replace(config, **nested)
    if message is None:
        assert [kind for kind, _ in outline_of(config).buckets] == ["image"]
        return
    with pytest.raises(ValueError, match=message):
        make_plan(config, setup.read_model_config(config), MACHINE)


def test_a_plan_adds_up_and_says_whether_it_fits(model_directory, tmp_path):
    config = sft_config(tmp_path, tmp_path / "run", model=str(model_directory))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_buckets=()))
    model = setup.read_model_config(config)
    plan = make_plan(config, model, MACHINE)
    (need,) = plan.needs
    assert need.phase == "update"
    assert need.sizes.arguments >= bytes_per_device(outline_of(config).state)
    parts = {row.partition(",")[0]: size for row, size in plan.parts.items() if size}
    assert list(parts) == ["master parameters", "optimizer moments", "gradients"]
    assert parts["master parameters"] + parts["optimizer moments"] == bytes_per_device(outline_of(config).state)
    assert need.sizes.temporaries > parts["gradients"] > 0
    assert plan.fits
    assert "fits, " in "\n".join(report(plan, config, model, "tiny", MACHINE))
    small = dataclasses.replace(plan, memory=plan.peak.together / USABLE_MEMORY - 1)
    assert not small.fits
    assert "does not fit" in "\n".join(report(small, config, model, "tiny", MACHINE))
    (seconds,) = plan.seconds.values()
    faster = make_plan(config, model, Target("test", Device("test", 16e9, 2e12, 2e12), 8), seen={})
    assert next(iter(faster.seconds.values()))["update"] == pytest.approx(seconds["update"] / 2)


def test_the_peak_is_the_largest_sum():
    needs = [Need("rollout", "", 5, Sizes(4, 3, 0), None), Need("update", "", 1, Sizes(8, 2, 1), None)]
    mesh = make_mesh()
    plan = Plan({}, needs, {}, 12 / USABLE_MEMORY, setup.Meshes(mesh, mesh), "cpu")
    assert plan.peak is needs[0]
    assert plan.fits
