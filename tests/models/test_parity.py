"""Equal to transformers, stage by stage and end to end; and each comparison is shown to be able to fail.

Tolerances, fixed beforehand: fp32 has 1e-7 of relative precision, sums of some hundred terms through six
layers lose one to two digits, so 1e-5 of the spread is expected and 1e-4 allowed.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from reference_model import batch, layout, mixed_cases, ours_from, random_reference, reference_inputs
from transformers.vision_utils import get_vision_window_index

from vr1_jax.data.collate import patch_layout
from vr1_jax.models import base, layers, vision

TOLERANCE = 1e-4


def difference(ours, reference) -> float:
    """Largest absolute difference, in units of the reference's spread."""
    reference = np.asarray(reference, np.float32)
    return float(np.abs(np.asarray(ours, np.float32) - reference).max() / reference.std())


@jax.jit
def all_logits(model, prompt):
    return base.logits(model, base.forward(model, prompt))


def reference_logits(reference, case, positions=None):
    with torch.no_grad():
        return reference(**reference_inputs(case, positions)).logits[0].numpy()


def worst_logits(
    models, rule="published", change=lambda prompt: prompt, cases=None, model_change=lambda m: m
) -> float:
    """Largest difference over the mixed batch, each prompt against its own unpadded reference run."""
    reference, ours = models
    cases = cases or mixed_cases()
    prompt = batch(cases, rule)
    logits = all_logits(model_change(ours), change(prompt))
    worst = 0.0
    for row, case in enumerate(cases):
        length = len(case.tokens)
        own_rule = rule == "transformers5" and case.media
        positions = None if own_rule else np.asarray(prompt.positions)[row, :, -length:]
        worst = max(worst, difference(logits[row, -length:], reference_logits(reference, case, positions)))
    return worst


@pytest.mark.parametrize("rule", ["published", "transformers5"])
def test_logits(models, rule):
    assert worst_logits(models, rule) <= TOLERANCE


def test_logprobs(untied):
    reference, ours = untied
    cases = mixed_cases(1)
    prompt = batch(cases)
    logps = jax.nn.log_softmax(all_logits(ours, prompt))
    for row, case in enumerate(cases):
        length = len(case.tokens)
        theirs = reference_logits(reference, case, np.asarray(prompt.positions)[row, :, -length:])
        theirs = torch.log_softmax(torch.from_numpy(theirs), -1).numpy()
        np.testing.assert_allclose(logps[row, -length:], theirs, atol=TOLERANCE, rtol=0)


class TestSensitivity:
    """The assertion of `test_logits` fails, by a wide margin, when a part of the model is broken."""

    margin = 100 * TOLERANCE

    def test_one_dimensional_rope(self, untied):
        def flat(prompt):
            steps = jnp.cumsum(prompt.mask, axis=1) - 1
            return dataclasses.replace(prompt, positions=jnp.repeat(steps[:, None], 3, axis=1))

        assert broken(untied, change=flat) > self.margin

    def test_no_windows(self, untied):
        def one_window(prompt):
            return dataclasses.replace(prompt, patch_windows=jnp.minimum(prompt.patch_windows, 0))

        assert broken(untied, change=one_window) > self.margin

    def test_swapped_frames(self, untied):
        def swap(prompt):
            return dataclasses.replace(prompt, patches=prompt.patches.at[0, :2].set(prompt.patches[0, 1::-1]))

        assert broken(untied, change=swap) > self.margin

    def test_no_padding_mask(self, untied):
        def open_mask(prompt):
            return dataclasses.replace(prompt, mask=jnp.ones_like(prompt.mask))

        assert broken(untied, change=open_mask) > self.margin

    def test_no_patch_coordinates(self, untied):
        def at_origin(prompt):
            return dataclasses.replace(prompt, patch_coords=jnp.zeros_like(prompt.patch_coords))

        assert broken(untied, change=at_origin) > self.margin

    def test_swapped_visual_slots(self, untied):
        def reverse(prompt):
            slots = prompt.visual_slots
            last = slots.max(axis=1, keepdims=True)
            return dataclasses.replace(prompt, visual_slots=jnp.where(slots >= 0, last - slots, slots))

        assert broken(untied, change=reverse) > self.margin

    def test_wrong_position_rule(self, untied):
        """The two rules really differ on a video."""
        reference, ours = untied
        case = mixed_cases()[0]
        logits = all_logits(ours, batch([case], "published"))[0, -len(case.tokens) :]
        assert difference(logits, reference_logits(reference, case)) > self.margin

    @pytest.mark.parametrize("leaf", ["attention_norm", "query_bias", "mlp_norm"])
    def test_forgotten_text_parameter(self, untied, leaf):
        def forget(model):
            model = jax.tree.map(lambda x: x, model)
            param = getattr(model.text.layers, leaf)
            param.set_value(jnp.ones_like(param[...]) if "norm" in leaf else jnp.zeros_like(param[...]))
            return model

        assert broken(untied, model_change=forget) > self.margin


def broken(models, **changes) -> float:
    """The comparison of `test_logits`, with every prompt compared at the positions that it should have."""
    reference, ours = models
    cases = mixed_cases()
    good = batch(cases)
    prompt = changes.get("change", lambda p: p)(good)
    logits = all_logits(changes.get("model_change", lambda m: m)(ours), prompt)
    return max(
        difference(
            logits[row, -len(case.tokens) :],
            reference_logits(reference, case, np.asarray(good.positions)[row, :, -len(case.tokens) :]),
        )
        for row, case in enumerate(cases)
    )


class TestVisionStages:
    """One image of 12 x 10 patches: windows of 4 x 4 units on a 6 x 5 grid, so three of the four are cut."""

    @pytest.fixture(scope="class")
    @classmethod
    def stages(cls, untied):
        reference, ours = untied
        case = mixed_cases()[1]
        seen = {}
        visual = reference.model.visual
        hooks = [
            module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.numpy()))
            for name, module in [
                ("patches", visual.patch_embed),
                *((i, b) for i, b in enumerate(visual.blocks)),
            ]
        ]
        inputs = reference_inputs(case)
        with torch.no_grad():
            out = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
        for hook in hooks:
            hook.remove()
        window_index, _ = get_vision_window_index(
            inputs["image_grid_thw"], spatial_merge_size=2, window_size=112, patch_size=14
        )
        back = np.argsort(window_index.numpy())
        for i in range(3):  # blocks run in window order there
            seen[i] = seen[i].reshape(-1, 4, seen[i].shape[-1])[back].reshape(-1, seen[i].shape[-1])
        seen["units"] = out.pooler_output.numpy()
        return seen, ours, batch([case])

    def test_patch_embedding(self, stages):
        seen, ours, prompt = stages
        x = vision.embed_patches(ours.vision, prompt.patches, ours.config.vision)
        assert difference(x[0, 0], seen["patches"]) <= TOLERANCE

    @pytest.mark.parametrize(("index", "full"), [(1, True), (2, False)])
    def test_block(self, stages, index, full):
        seen, ours, prompt = stages
        windows = prompt.patch_windows
        mask = windows[..., None] == windows[..., None, :]
        layer = jax.tree.map(lambda x: x[index], ours.vision.layers)
        angles = layers.vision_angles(prompt.patch_coords, ours.config.vision)
        x = jnp.asarray(seen[index - 1])[None, None]
        out = vision.block(layer, x, angles, jnp.ones_like(mask) if full else mask)
        assert difference(out[0, 0], seen[index]) <= TOLERANCE
        wrong = vision.block(layer, x, angles, mask if full else jnp.ones_like(mask))
        assert difference(wrong[0, 0], seen[index]) > 100 * TOLERANCE

    def test_merger(self, stages):
        seen, ours, _ = stages
        units = vision.merge_patches(ours.vision, jnp.asarray(seen[2])[None, None], ours.config.vision)
        assert difference(units[0, 0], seen["units"]) <= TOLERANCE

    def test_whole_tower(self, stages):
        seen, ours, prompt = stages
        assert (
            difference(vision.visual_units(ours.vision, prompt, ours.config.vision)[0], seen["units"]) <= TOLERANCE
        )


def test_hidden_states(untied):
    reference, ours = untied
    case = mixed_cases()[3]
    with torch.no_grad():
        theirs = reference.model(**reference_inputs(case)).last_hidden_state[0].numpy()
    hidden = base.forward(ours, batch([case], "transformers5"))
    assert difference(hidden[0, -len(case.tokens) :], theirs) <= TOLERANCE


def test_positions_match_transformers(untied):
    reference, _ = untied
    cases = mixed_cases()
    prompt = batch(cases, "transformers5")
    for row, case in enumerate(cases[:4]):
        inputs = reference_inputs(case)
        keep = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        theirs, _ = reference.model.get_rope_index(**{k: v for k, v in inputs.items() if k in keep})
        np.testing.assert_array_equal(prompt.positions[row, :, -len(case.tokens) :], theirs[:, 0])


def test_windows_match_transformers():
    for rows, columns in ((4, 4), (8, 16), (12, 10), (6, 26), (18, 2)):
        grid = torch.tensor([[1, rows, columns]])
        order, lengths = get_vision_window_index(grid, spatial_merge_size=2, window_size=112, patch_size=14)
        theirs = np.empty(len(order), int)
        bounds = np.unique(lengths.numpy()) // 4
        for window, (start, end) in enumerate(itertools.pairwise(bounds)):
            theirs[order.numpy()[start:end]] = window
        _, ours = patch_layout((1, rows, columns), layout())
        np.testing.assert_array_equal(ours[::4], theirs)


def test_gradients(untied):
    """d(sum of next-token log-probs)/d(leaf) for leaves at both ends of both towers."""
    reference, ours = untied
    case = mixed_cases()[3]
    prompt = batch([case], "transformers5")
    length = len(case.tokens)

    def loss(model):
        logps = jax.nn.log_softmax(base.logits(model, base.forward(model, prompt)))[0, -length:-1]
        return jnp.take_along_axis(logps, jnp.asarray(case.tokens)[1:, None], axis=1).sum()

    grads = jax.jit(jax.grad(loss))(ours)
    reference.zero_grad()
    logps = torch.log_softmax(reference(**reference_inputs(case)).logits[0, :-1], -1)
    logps.gather(1, torch.tensor(case.tokens[1:], dtype=torch.long)[:, None]).sum().backward()
    visual, language = reference.model.visual, reference.model.language_model
    pairs = {
        "patch embedding": (
            grads.vision.patch_embed[...].reshape(1176, -1).T,
            visual.patch_embed.proj.weight.grad.flatten(1),
        ),
        "vision qkv": (grads.vision.layers.qkv[0].reshape(64, -1).T, visual.blocks[0].attn.qkv.weight.grad),
        "merger": (grads.vision.merger_out[...].T, visual.merger.mlp[2].weight.grad),
        "embedding": (grads.text.embed[...], language.embed_tokens.weight.grad),
        "first query": (
            grads.text.layers.query[0].reshape(64, -1).T,
            language.layers[0].self_attn.q_proj.weight.grad,
        ),
        "last key bias": (
            grads.text.layers.key_bias[2].reshape(-1),
            language.layers[2].self_attn.k_proj.bias.grad,
        ),
        "last down": (grads.text.layers.down[2].T, language.layers[2].mlp.down_proj.weight.grad),
        "head": (grads.text.head[...], reference.lm_head.weight.grad),
    }
    assert {name: difference(a, b) for name, (a, b) in pairs.items() if difference(a, b) > TOLERANCE} == {}


def test_bf16_is_as_close_to_fp32_as_transformers_own():
    """Mean distance of log-probs to the fp32 run; ours may not be worse than theirs by more than a tenth."""
    reference = random_reference(True)
    with torch.no_grad():  # both start from the same bf16 weights, so that only the arithmetic differs
        for weight in reference.parameters():
            weight.copy_(weight.bfloat16().float())
    exact, rounded = ours_from(reference), ours_from(reference, jnp.bfloat16)
    frequencies = {name: buffer.clone() for name, buffer in reference.named_buffers()}
    reference.bfloat16()
    for name, buffer in frequencies.items():  # stay fp32 when transformers loads a bf16 checkpoint
        reference.get_submodule(name.rpartition(".")[0]).register_buffer(name.rpartition(".")[2], buffer)
    ours, theirs = [], []
    for seed in range(4):
        cases = mixed_cases(seed)
        prompt = batch(cases)
        want, got = (jax.nn.log_softmax(all_logits(model, prompt)) for model in (exact, rounded))
        for row, case in enumerate(cases):
            length = len(case.tokens)
            positions = np.asarray(prompt.positions)[row, :, -length:]
            inputs = reference_inputs(case, positions)
            with torch.no_grad():
                low = torch.log_softmax(reference(**inputs).logits[0].float(), -1).numpy()
            ours.append(np.abs(got[row, -length:] - want[row, -length:]).mean())
            theirs.append(np.abs(low - np.asarray(want[row, -length:])).mean())
    assert np.mean(ours) <= 1.1 * np.mean(theirs)
    assert np.mean(ours) > 0  # the comparison is not of fp32 with itself
