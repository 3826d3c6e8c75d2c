"""LoRA runs: only adapters are trained, saved and exported; the reference is the model without them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny_runs import rl_config, sft_config, write_small_world
from transformers import AutoModelForImageTextToText

from vr1_jax.config import MeshConfig, WatchConfig
from vr1_jax.errors import UsageError, UserError
from vr1_jax.models import base
from vr1_jax.models.adapters import add_adapters, is_adapter, without_adapters
from vr1_jax.models.config import LoraConfig
from vr1_jax.training import setup
from vr1_jax.training.loop import train
from vr1_jax.training.metrics import read_metrics
from vr1_jax.types import blank_prompt
from vr1_jax.weights.adapters import export_adapter
from vr1_jax.weights.conversion import flax_to_hf
from vr1_jax.weights.loading import load_model

LORA = LoraConfig(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "world"
    write_small_world(out)
    return out


@pytest.fixture(scope="module")
def pretrained(world, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    train(sft_config(world, run))
    return run


@pytest.fixture(scope="module")
def adapted(world, pretrained, tmp_path_factory):
    """An uninterrupted T-GRPO run of four steps with adapters in both towers, and its last state."""
    run = tmp_path_factory.mktemp("runs") / "adapted"
    state = train(rl_config(world, pretrained, run, lora=dataclasses.replace(LORA, vision=True)))
    return run, state


def leaves(model):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(model)}


def logits(model, prompt):
    return base.logits(model, base.forward(model, prompt))


@pytest.fixture(scope="module")
def question():
    tokens = np.random.default_rng(0).integers(5, 500, (1, 24))
    prompt = dataclasses.replace(
        blank_prompt(1, slices=0, patches=0, tokens=24), tokens=jnp.asarray(tokens, jnp.int32)
    )
    positions = jnp.broadcast_to(jnp.arange(24), (1, 3, 24)).astype(jnp.int32)
    return dataclasses.replace(prompt, positions=positions)


def test_new_adapters_change_nothing_and_others_do_what_merging_them_does(pretrained, question):
    model, _ = load_model(pretrained)
    adapted = add_adapters(model, LORA, jax.random.key(0))
    np.testing.assert_array_equal(logits(adapted, question), logits(model, question))
    moved = jax.tree.map_with_path(
        lambda path, x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape) if is_adapter(path) else x,
        adapted,
    )
    merged = jax.tree.map(lambda x: x, model)
    for name in ("query", "out", "down", "key", "value", "gate", "up"):
        matrix = getattr(moved.text.layers, name)
        a, b = matrix.lora_a[...], matrix.lora_b[...]
        change = jnp.einsum("lir,lro->lio", a.reshape(len(a), -1, 4), b.reshape(len(b), 4, -1)) * 2.0
        param = getattr(merged.text.layers, name)
        param.set_value(param.get_value() + change.reshape(param.get_value().shape))
    expected, got = logits(merged, question), logits(moved, question)
    np.testing.assert_allclose(got, expected, atol=1e-5 * float(expected.std()), rtol=0)
    assert float(jnp.abs(expected - logits(model, question)).max()) > 1e-2 * float(expected.std())


def test_only_adapters_move_and_the_reference_is_the_model_itself(pretrained, adapted):
    _, state = adapted
    model, _ = load_model(pretrained)
    begun, after = leaves(base.unstack(model)), leaves(without_adapters(state.model))
    for name, array in begun.items():
        np.testing.assert_array_equal(after[name], array)
    moved = [x for name, x in leaves(state.model).items() if ".lora_b" in name]
    assert sum(np.abs(x).max() > 0 for x in moved) > len(moved) / 2
    assert len(jax.tree.leaves(state.opt_state)) < 3 * len(jax.tree.leaves(state.model))


def test_metrics_are_those_of_any_run(adapted):
    run, _ = adapted
    lines = read_metrics(run)
    assert lines[0]["kl"] < 1e-10  # the policy is still the reference
    assert lines[-1]["kl"] > 1e-8
    assert all(line["sampler_gap_max"] < 1e-4 for line in lines)


def test_checkpoints_hold_adapters_only(adapted):
    run, _ = adapted
    saved = json.loads((run / "checkpoints/4/params/_METADATA").read_text())
    assert saved["tree_metadata"]
    assert all("lora_" in name for name in saved["tree_metadata"])


def test_a_stopped_run_resumes_to_the_bit(world, pretrained, adapted, tmp_path):
    _, straight = adapted
    lora = dataclasses.replace(LORA, vision=True)
    train(rl_config(world, pretrained, tmp_path / "run", lora=lora, steps=2))
    resumed = train(rl_config(world, pretrained, tmp_path / "run", lora=lora))
    for ours, theirs in zip(jax.tree.leaves(resumed), jax.tree.leaves(straight), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_model_of_it_is_merged(adapted, question):
    run, state = adapted
    model, _ = load_model(run)
    expected = logits(jax.device_put(state.model, jax.devices()[0]), question)
    np.testing.assert_allclose(logits(model, question), expected, atol=1e-5 * float(expected.std()), rtol=0)


def test_exports_merged_or_as_an_adapter_are_the_same_model_in_transformers(
    pretrained, adapted, question, tmp_path
):
    run, _ = adapted
    flax_to_hf(run, tmp_path / "merged", dtype="float32")
    flax_to_hf(pretrained, tmp_path / "base", dtype="float32")
    export_adapter(run, tmp_path / "adapter")
    tokens = torch.from_numpy(np.array(question.tokens)).long()
    with torch.no_grad():
        load = AutoModelForImageTextToText.from_pretrained
        merged = load(tmp_path / "merged", dtype=torch.float32)(input_ids=tokens).logits
        alone = load(tmp_path / "base", dtype=torch.float32)
        plain = alone(input_ids=tokens).logits
        with_adapter = PeftModel.from_pretrained(alone, str(tmp_path / "adapter"))
        given = {name for name, _ in with_adapter.named_parameters() if "lora_" in name}
        got = with_adapter(input_ids=tokens).logits
    ours = logits(load_model(run)[0], question)
    scale = float(merged.std())
    assert float((got - merged).abs().max()) <= 1e-4 * scale
    np.testing.assert_allclose(ours, merged.numpy(), atol=1e-4 * scale, rtol=0)
    assert float((plain - merged).abs().max()) > 1e-3 * scale
    assert any("visual" in name for name in given)


def test_what_it_adapts_must_be_there(world, pretrained, adapted, tmp_path):
    run, _ = adapted
    meta = json.loads((run / "meta.json").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("hf", "checkpoints"):
        (moved / name).symlink_to(run / name)
    meta["lora"]["base"] = str(tmp_path / "gone")
    (moved / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"adapts .*gone, which is gone"):
        load_model(moved)
    with pytest.raises(UserError, match="has no adapters to export"):
        export_adapter(pretrained, tmp_path / "none")


def test_supervised_runs_learn_with_adapters_and_go_on_from_them(world, pretrained, tmp_path, monkeypatch):
    """On one device, where the arrays that are trained around also sample; then T-GRPO of the merged model."""
    on_all = setup.make_meshes
    monkeypatch.setattr(setup, "make_meshes", lambda config: on_all(config, jax.devices()[:1]))
    one = {"mesh": MeshConfig(), "watch": WatchConfig(evaluate_every=4)}
    train(sft_config(world, tmp_path / "sft", model=str(pretrained), from_scratch=False, lora=LORA, **one))
    lines = read_metrics(tmp_path / "sft")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert 0 <= lines[-1]["heldout_accuracy"] <= 1
    train(rl_config(world, tmp_path / "sft", tmp_path / "rl", lora=LORA, steps=1, mesh=MeshConfig()))
    (line,) = read_metrics(tmp_path / "rl")
    assert line["kl"] < 1e-10


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            LoraConfig(rank=4, targets=("query", "q_proj")),
            r"lora.targets: q_proj: use some of down, gate, key, out",
        ),
        (LoraConfig(rank=4, targets=("qkv",)), "lora.targets qkv: the decoder has none of them; set lora.vision"),
    ],
)
def test_targets_that_no_layer_has_are_refused(world, pretrained, tmp_path, lora, message):
    """Or the run would train the whole model, in bf16."""
    with pytest.raises(UsageError, match=message):
        train(rl_config(world, pretrained, tmp_path / "run", lora=lora))
    assert not (tmp_path / "run/checkpoints").exists()
