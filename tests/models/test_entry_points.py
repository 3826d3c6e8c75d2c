"""Every way into the model gives the same numbers: they are one model.

fp32 throughout; 1e-4 on logits whose spread is 1, the tolerance of the parity tests, for the same reason.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_model import Case, batch, mixed_cases

from vr1_jax.data.collate import Bucket
from vr1_jax.models import attention, base, text

G, C = 3, 5
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def completions():
    return np.random.default_rng(5).integers(0, 280, (len(mixed_cases()), G, C))


@jax.jit
def full_logits(model, prompt):
    return base.logits(model, base.forward(model, prompt))


@jax.jit
def completion_logits(model, prompt, tokens):
    return base.logits(model, base.forward_completions(model, prompt, tokens)[1])


def repeated(model, completions):
    """The plain way: every completion behind its own copy of the prompt, [B, G, C, V]."""
    cases = [
        Case(*_parts(case), row) for case, rows in zip(mixed_cases(), completions, strict=True) for row in rows
    ]
    logits = full_logits(model, batch(cases))
    return logits[:, -C - 1 : -1].reshape(-1, G, C, logits.shape[-1])


def _parts(case):
    """Take a case apart again, so that tokens can be put behind it."""
    tokens, media, parts = case.tokens.tolist(), list(case.media), []
    while media:
        start = tokens.index(292)
        parts += [tokens[:start], media.pop(0)]
        tokens = tokens[tokens.index(293) + 1 :]
    return [*parts, tokens]


def test_shared_prompt_equals_repeated_prompt(untied, completions):
    _, model = untied
    shared = completion_logits(model, batch(mixed_cases()), jnp.asarray(completions))
    np.testing.assert_allclose(shared, repeated(model, completions), atol=TOLERANCE, rtol=0)


def test_gradients_of_shared_prompt_equal_repeated_prompt(untied, completions):
    _, model = untied
    weights = jnp.asarray(np.random.default_rng(6).normal(size=completions.shape))

    def loss(logits):
        logps = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(completions)[..., None], -1)[..., 0]
        return (weights * logps).mean()

    prompt = batch(mixed_cases())
    shared = jax.jit(jax.grad(lambda m: loss(completion_logits(m, prompt, jnp.asarray(completions)))))(model)
    plain = jax.jit(jax.grad(lambda m: loss(repeated(m, completions))))(model)
    worst = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max() / (jnp.abs(b).max() + 1e-12)), shared, plain)
    by_leaf = {jax.tree_util.keystr(path): value for path, value in jax.tree.leaves_with_path(worst)}
    assert {name: value for name, value in by_leaf.items() if value > TOLERANCE} == {}


def test_prefill_and_decode_equal_full_forward(untied, completions):
    _, model = untied
    prompt = batch(mixed_cases())
    expected = completion_logits(model, prompt, jnp.asarray(completions))
    last, prompt_cache = jax.jit(base.prefill)(model, prompt)
    caches = [attention.empty_cache(model.config.text, len(completions), G, C, jnp.float32)]
    decode = jax.jit(base.decode, static_argnums=2)
    hidden = [jnp.broadcast_to(last[:, None], (len(completions), G, last.shape[-1]))]
    for step in range(C - 1):
        fed = jnp.asarray(completions[:, :, step])
        h, caches = decode(model, [prompt_cache], (G,), caches, fed, jnp.int32(step))
        hidden.append(h)
    got = base.logits(model, jnp.stack(hidden, axis=2))
    np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0)
    # Sensitivity: the same tokens one slot late are something else entirely.
    late, _ = decode(model, [prompt_cache], (G,), caches, jnp.asarray(completions[:, :, 1]), jnp.int32(2))
    assert np.abs(base.logits(model, late) - expected[:, :, 2]).max() > 100 * TOLERANCE


def test_padding_bucket_and_batch_order_change_nothing(untied):
    _, model = untied
    cases = mixed_cases()
    expected = full_logits(model, batch(cases))
    for order, bucket in (([4, 2, 0, 3, 1], None), ([0, 1, 2, 3, 4], Bucket(5, 136, 90)), ([1], None)):
        logits = full_logits(model, batch([cases[i] for i in order], bucket=bucket))
        for row, i in enumerate(order):
            length = len(cases[i].tokens)
            np.testing.assert_allclose(logits[row, -length:], expected[i, -length:], atol=TOLERANCE, rtol=0)


def test_padding_after_a_completion_changes_nothing(untied, completions):
    _, model = untied
    prompt = batch(mixed_cases())
    longer = np.pad(completions, ((0, 0), (0, 0), (0, 4)), constant_values=7)
    got = completion_logits(model, prompt, jnp.asarray(longer))[:, :, :C]
    np.testing.assert_allclose(
        got, completion_logits(model, prompt, jnp.asarray(completions)), atol=TOLERANCE, rtol=0
    )


def test_long_sequences_attend_in_blocks(monkeypatch):
    """Queries in blocks of 16, of a length that 16 does not divide, gradients included."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 37, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    mask = jnp.arange(37) >= jnp.array([[0], [5]])

    def run(q):
        return jnp.where(mask[..., None, None], attention.causal(q, k, v, mask), 0)

    whole, whole_grad = run(q), jax.grad(lambda q: jnp.square(run(q)).sum())(q)
    monkeypatch.setattr(attention, "LARGEST_BLOCK", 16)
    assert attention.block_bounds(37) == [0, 12, 24, 37]
    np.testing.assert_allclose(run(q), whole, atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda q: jnp.square(run(q)).sum())(q), whole_grad, atol=1e-6)


def test_a_bucket_of_texts_has_no_vision(untied):
    _, model = untied
    words = mixed_cases()[4]
    with_vision = full_logits(model, batch([words]))[0, -len(words.tokens) :]
    without = full_logits(model, batch([words], bucket=Bucket(0, 0, 16)))[0, -len(words.tokens) :]
    np.testing.assert_allclose(without, with_vision, atol=TOLERANCE, rtol=0)


def test_gradients_of_repeated_tokens_add_up_in_fp32(untied):
    """A thousand times 1/256 is lost to a bf16 sum, which stands still at 1."""
    _, model = untied
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.text)

    def total(text_model):
        return (text.embed_tokens(text_model, jnp.zeros((1, 1000), jnp.int32)) / 256).sum(dtype=jnp.float32)

    gradient = jax.grad(total)(low).embed[...]
    np.testing.assert_allclose(gradient[0].astype(jnp.float32), 1000 / 256, rtol=2**-8)
    summed_low = jnp.zeros(4, jnp.bfloat16).at[jnp.zeros(1000, int)].add(jnp.bfloat16(1 / 256))
    assert summed_low[0] < 0.9 * 1000 / 256
