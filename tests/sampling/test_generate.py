"""Generation: against transformers, against the full forward pass, and against itself in another layout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_model import Case, batch, mixed_cases, reference_inputs

from vr1_jax.data.collate import Bucket
from vr1_jax.errors import UsageError
from vr1_jax.models import base
from vr1_jax.sampling import generate as sampling
from vr1_jax.sampling.generate import (
    Limits,
    Plan,
    advance,
    finish,
    generate,
    row_keys,
    split_groups,
    start,
)
from vr1_jax.sampling.settings import SamplingConfig

B, G, C = 5, 3, 16
BUCKET = Bucket(3, 136, 70)
PAD = 299
# About every tenth token of the random model's is one of these.
STOPS = tuple(range(0, 300, 10))
PLAN = Plan(groups=(G,), capacity=C, stop_tokens=STOPS, pad_token=PAD)
LIMITS = Limits.of(SamplingConfig(max_new_tokens=C))
IDS = jnp.arange(B * G).reshape(B, G)


def keys_of(ids):
    return row_keys(jax.random.key(0), 3, ids)


def run(model, prompts, *, ids=IDS, active=None, limits=LIMITS, plan=PLAN):
    active = jnp.ones(ids.shape, bool) if active is None else jnp.asarray(active)
    return generate(model, prompts, active, keys_of(ids), limits, plan)


def answers(completion):
    """Token lists, without padding."""
    groups = zip(np.asarray(completion.tokens), np.asarray(completion.mask), strict=True)
    return [[row[kept].tolist() for row, kept in zip(*group, strict=True)] for group in groups]


@pytest.fixture(scope="module")
def model(untied):
    return untied[1]


@pytest.fixture(scope="module")
def prompt():
    return batch(mixed_cases(), bucket=BUCKET)


@pytest.fixture(scope="module")
def sampled(model, prompt):
    return run(model, (prompt,))


class TestGreedy:
    """transformers' own positions: text after the video long enough that the video's times lie before it."""

    limits = Limits.of(SamplingConfig(max_new_tokens=12, temperature=0.0))

    @pytest.fixture
    def cases(self):
        image, *_, words = (mixed_cases(2)[i] for i in (1, 4))
        rng = np.random.default_rng(1)
        (video,) = mixed_cases(2)[0].media
        return [image, Case(rng.integers(0, 280, 5), video, rng.integers(0, 280, 25)), words]

    def theirs(self, reference, case, stops, penalty=1.0):
        inputs = reference_inputs(case)
        out = reference.generate(
            **inputs, do_sample=False, max_new_tokens=12, eos_token_id=stops, pad_token_id=PAD,
            repetition_penalty=penalty,
        )  # fmt: skip
        return out[0, inputs["input_ids"].shape[1] :].tolist()

    def ours(self, model, cases, stops, limits):
        plan = Plan((1,), 64, tuple(stops), PAD, penalize=float(limits.repetition_penalty) != 1)
        prompt = batch(cases, rule="transformers5")
        ids = jnp.zeros((len(cases), 1), int)
        return [row for (row,) in answers(run(model, (prompt,), ids=ids, limits=limits, plan=plan))]

    def test_equals_transformers(self, untied, cases):
        reference, model = untied
        unstopped = [self.theirs(reference, case, [298]) for case in cases]
        assert self.ours(model, cases, [298], self.limits) == unstopped
        # Two stop ids: one ends the first answer at its fourth token, the other the second at its sixth.
        stops = [unstopped[0][3], unstopped[1][5]]
        stopped = [self.theirs(reference, case, stops) for case in cases]
        assert self.ours(model, cases, stops, self.limits) == stopped
        assert len(stopped[0]) <= 4 < len(unstopped[0])

    def test_a_video_that_ends_far_behind_its_question(self, untied):
        """75 s a slice: transformers' rope_deltas would count on from the video's end; its generate does not."""
        reference, model = untied
        rng = np.random.default_rng(1)
        (video,) = mixed_cases(2)[0].media
        slow = dataclasses.replace(video, block=dataclasses.replace(video.block, seconds_per_slice=75.0))
        case = Case(rng.integers(0, 280, 5), slow, rng.integers(0, 280, 25))
        prompt = batch([case], rule="transformers5")
        assert prompt.positions.max() > 4 * prompt.next_position[0]
        theirs = self.theirs(reference, case, [298])
        assert self.ours(model, [case], [298], self.limits) == [theirs]
        hurried = Case(case.tokens[:5], video, case.tokens[-25:])
        assert self.theirs(reference, hurried, [298]) != theirs

    def test_with_repetition_penalty_equals_transformers(self, untied, cases):
        reference, model = untied
        limits = dataclasses.replace(self.limits, repetition_penalty=jnp.float32(1.4))
        penalized = [self.theirs(reference, case, [298], penalty=1.4) for case in cases]
        assert self.ours(model, cases, [298], limits) == penalized
        assert penalized != [self.theirs(reference, case, [298]) for case in cases]


def test_log_probs_equal_the_full_forward(model, prompt, sampled):
    """Under the full softmax at temperature 1, though sampled with top_p; every step, not only the first."""

    @jax.jit
    def full(prompt):
        _, hidden = base.forward_completions(model, prompt, sampled.tokens)
        logps = jax.nn.log_softmax(base.logits(model, hidden))
        return jnp.take_along_axis(logps, sampled.tokens[..., None], axis=-1)[..., 0]

    mask = np.asarray(sampled.mask)
    assert mask[..., -1].any()
    np.testing.assert_allclose(sampled.logps[mask], full(prompt)[mask], atol=1e-4)
    # Sensitivity: the same answers behind another prompt.
    another = jax.tree.map(lambda x: x[::-1], prompt)
    assert np.abs(full(another) - sampled.logps)[mask].max() > 0.1


def test_stops_are_latched(sampled):
    tokens, mask, stopped = (np.asarray(x) for x in (sampled.tokens, sampled.mask, sampled.stopped))
    lengths = mask.sum(-1)
    assert stopped.any()
    assert not stopped.all()
    assert len(set(lengths[stopped])) > 2
    for b, g in np.ndindex(B, G):
        row, length = tokens[b, g], lengths[b, g]
        assert mask[b, g, :length].all()
        ends = np.isin(row[:length], STOPS)
        assert ends.sum() == stopped[b, g]
        assert ends[-1] == stopped[b, g]
        assert length == C or stopped[b, g]
        assert (row[length:] == PAD).all()
        assert (np.asarray(sampled.logps)[b, g, length:] == 0).all()


@pytest.mark.parametrize("change", ["order", "bucket", "groups"])
def test_a_row_depends_on_its_own_id_only(model, sampled, change):
    expected = answers(sampled)
    if change == "order":
        order = [4, 2, 0, 3, 1]
        prompt = batch([mixed_cases()[i] for i in order], bucket=BUCKET)
        columns = [2, 0, 1]
        got = answers(run(model, (prompt,), ids=IDS[jnp.array(order)][:, jnp.array(columns)]))
        expected = [[expected[i][j] for j in columns] for i in order]
    elif change == "bucket":
        got = answers(run(model, (batch(mixed_cases(), bucket=Bucket(5, 140, 90)),)))
    else:
        prompt = batch(mixed_cases()[:2], bucket=BUCKET)
        plan = dataclasses.replace(PLAN, groups=(1,))
        got = answers(run(model, (prompt,), ids=IDS[:2, :1], plan=plan))
        expected = [group[:1] for group in expected[:2]]
    assert got == expected


def test_streaming_in_pieces_equals_one_call(model, prompt, sampled):
    state = start(model, (prompt,), jnp.ones((B, G), bool), keys_of(IDS), LIMITS, PLAN)
    assert state.step == 1
    for until in (2, 3, 9, 99):
        state = advance(model, state, LIMITS, PLAN, jnp.int32(until))
        assert state.step <= min(until, C)
    assert state.step == C
    jax.tree.map(np.testing.assert_array_equal, finish(state), sampled)


def test_growing_caches_change_nothing(model, prompt, sampled, monkeypatch):
    """Decoded with 4, 8 and then all 16 slots, in one call and in pieces that end elsewhere."""
    monkeypatch.setattr(sampling, "_SHORTEST_CACHE", 4)
    assert sampling.cache_sizes(C) == [4, 8, 16]
    plan = dataclasses.replace(PLAN, pad_token=PAD - 1)  # a program of its own
    state = start(model, (prompt,), jnp.ones((B, G), bool), keys_of(IDS), LIMITS, plan)
    for until in (6, 9, 99):
        state = advance(model, state, LIMITS, plan, jnp.int32(until))
    assert answers(finish(state)) == answers(sampled)
    np.testing.assert_allclose(state.logps, sampled.logps, atol=1e-4)


class TestLimits:
    """Changes within a bucket: none may compile."""

    @pytest.fixture(autouse=True)
    def no_compilation(self, sampled):
        compiled = []
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, _, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
        )
        before = generate._cache_size()
        yield compiled
        jax.monitoring.clear_event_listeners()
        assert generate._cache_size() == before

    @pytest.mark.parametrize(
        "config",
        [
            SamplingConfig(max_new_tokens=5),
            SamplingConfig(max_new_tokens=5, temperature=0.3),
            SamplingConfig(max_new_tokens=16, top_p=0.2),
            SamplingConfig(max_new_tokens=1, temperature=0.0),
        ],
    )
    def test_of_length_and_temperature(self, model, prompt, sampled, config, no_compilation):
        inputs = (model, (prompt,), jnp.ones((B, G), bool), keys_of(IDS), Limits.of(config), PLAN)
        no_compilation.clear()
        completion = generate(*inputs)
        assert no_compilation == []
        lengths = completion.mask.sum(-1)
        assert lengths.max() == config.max_new_tokens
        if config == SamplingConfig(max_new_tokens=5):
            cut = [[row[:5] for row in group] for group in answers(sampled)]
            assert answers(completion) == cut
            assert not completion.stopped[lengths == 5].all()

    def test_beyond_the_capacity_end_there(self, model, prompt, sampled):
        longer = dataclasses.replace(LIMITS, max_new_tokens=jnp.int32(C + 9))
        jax.tree.map(np.testing.assert_array_equal, run(model, (prompt,), limits=longer), sampled)

    def test_another_seed_gives_other_answers(self, model, prompt, sampled):
        assert answers(run(model, (prompt,), ids=IDS + 100)) != answers(sampled)

    def test_inactive_rows_stay_empty_and_change_nothing_else(self, model, prompt, sampled):
        active = np.arange(B * G).reshape(B, G) % 4 != 1
        completion = run(model, (prompt,), active=active)
        assert not completion.mask[~active].any()
        assert not completion.stopped[~active].any()
        assert (completion.tokens[~active] == PAD).all()
        for got, expected in zip(jax.tree.leaves(completion), jax.tree.leaves(sampled), strict=True):
            np.testing.assert_array_equal(got[active], expected[active])


def test_decoding_ends_with_the_longest_answer(model, prompt, sampled):
    """One step for each token of the longest answer among the active rows."""
    lengths = np.asarray(sampled.mask.sum(-1))
    short = lengths < C - 1
    for active in (short, np.zeros((B, G), bool)):
        state = start(model, (prompt,), jnp.asarray(active), keys_of(IDS), LIMITS, PLAN)
        state = advance(model, state, LIMITS, PLAN, jnp.int32(C))
        assert state.step == max(1, lengths[active].max(initial=0))


def test_ordered_and_shuffled_in_one_call_equal_two_calls(model, prompt):
    """The second prompt has its slices reversed; its rows see that, and only that."""
    backwards = dataclasses.replace(prompt, patches=prompt.patches[:, ::-1])
    plan = dataclasses.replace(PLAN, groups=(2, 1))
    both = split_groups(run(model, (prompt, backwards), plan=plan), (2, 1))
    first = run(model, (prompt,), ids=IDS[:, :2], plan=dataclasses.replace(PLAN, groups=(2,)))
    second = run(model, (backwards,), ids=IDS[:, 2:], plan=dataclasses.replace(PLAN, groups=(1,)))
    assert [answers(c) for c in both] == [answers(first), answers(second)]
    ordered = run(model, (prompt,), ids=IDS[:, 2:], plan=dataclasses.replace(PLAN, groups=(1,)))
    assert answers(ordered)[0] != answers(second)[0]  # a video
    assert answers(ordered)[4] == answers(second)[4]  # text only


def test_row_keys_come_from_seed_step_and_id():
    seed = jax.random.key(1)
    data = lambda *args: np.asarray(jax.random.key_data(row_keys(*args)))  # noqa: E731
    keys = data(seed, 5, IDS)
    assert len(np.unique(keys.reshape(B * G, -1), axis=0)) == B * G
    np.testing.assert_array_equal(data(seed, 5, IDS[2:3, 1:]), keys[2:3, 1:])
    assert (data(seed, 6, IDS) != keys).any(-1).all()
    assert (data(jax.random.key(2), 5, IDS) != keys).any(-1).all()


def test_lengths_up_to_a_multiple_of_64_share_a_program():
    assert {SamplingConfig(max_new_tokens=n).capacity for n in (705, 730, 768)} == {768}
    assert SamplingConfig(max_new_tokens=769).capacity == 832


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(field, value):
    with pytest.raises(UsageError, match=f"{field} is {value}"):
        SamplingConfig(**{field: value})


def test_truncated_log_probs_on_request(model, prompt, sampled):
    """Under the nucleus that was sampled from: the full forward's distribution, cut at top_p and normalised."""
    limits = Limits.of(SamplingConfig(max_new_tokens=C, temperature=0.7, top_p=0.6))
    completion = run(model, (prompt,), limits=limits, plan=dataclasses.replace(PLAN, truncated_logps=True))
    assert sampled.truncated_logps is None
    _, hidden = base.forward_completions(model, prompt, completion.tokens)
    probs = np.asarray(jax.nn.softmax(base.logits(model, hidden) / 0.7), np.float64)
    ordered = np.sort(probs, axis=-1)[..., ::-1]
    kept = np.cumsum(ordered, axis=-1) - ordered < 0.6
    mass = (ordered * kept).sum(-1)
    chosen = np.take_along_axis(probs, np.asarray(completion.tokens)[..., None], axis=-1)[..., 0]
    mask = np.asarray(completion.mask)
    got = np.asarray(completion.truncated_logps)
    np.testing.assert_allclose(got[mask], np.log(chosen / mass)[mask], atol=1e-4)
    assert (got[mask] > np.asarray(completion.logps)[mask]).mean() > 0.5  # not the full distribution's
