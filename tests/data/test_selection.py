"""How often records of a source are drawn, and which their pass rate leaves out, counted over a real order."""

from collections import Counter

import numpy as np
import pytest
from tiny_world import BUCKETS, batching, encoder_of, layout_of, record, write_records

from vr1_jax.config import load_config
from vr1_jax.data.pipeline import Pipeline
from vr1_jax.data.sources import Selection, Source
from vr1_jax.errors import UserError

SOURCES = ("common", "twice", "half", "never")
EACH = 200


@pytest.fixture
def drawn(tmp_path, tiny_tokenizer, media):
    """How often each record stands in one epoch; records of four sources with pass rates 0, 0.1, .. 0.9, none."""
    records = [
        record(n, "image", "0.png")
        | {"data_source": SOURCES[n // EACH], "pass_rate": None if n % 11 == 10 else n % 11 / 10}
        for n in range(len(SOURCES) * EACH)
    ]
    source = Source(write_records(tmp_path / "r.json", records), tmp_path)

    def count(seed=3, **selection) -> np.ndarray:
        settings = {"selection": Selection(**selection)} if selection else {}
        encoder, layout = encoder_of(tiny_tokenizer), layout_of(tiny_tokenizer)
        chosen = batching(1, seed=seed, buckets={"image": BUCKETS["image"]}, **settings)
        pipeline = Pipeline([source], encoder, layout, media, chosen)
        order = pipeline._order
        places = (order.batch(step) for step in range(pipeline.steps_per_epoch))
        found = Counter(int(pipeline.groups[g].records[order.record(g, place)]) for g, place in places)
        return np.array([found[n] for n in range(len(records))]), pipeline._fingerprint

    return count


def test_weights_by_source(drawn):
    counts, _ = drawn(weights={"twice": 2.0, "half": 0.5, "never": 0.0})
    common, twice, half, never = counts.reshape(len(SOURCES), EACH)
    assert set(common) == {1}
    assert set(twice) == {2}
    assert set(half) == {0, 1}
    assert abs(half.sum() - EACH / 2) < 4 * np.sqrt(EACH / 4)  # binomial, four sigma
    assert not never.any()
    again, other = (drawn(seed, weights={"half": 0.5})[0] for seed in (3, 4))
    assert (again != other).any()


def test_without_a_selection_every_record_stands_once(drawn):
    plain, named = drawn(), drawn(weights={"twice": 1.0})
    assert set(plain[0]) == {1}
    assert plain[1] == named[1]  # the same order, to the record


def test_pass_rates(drawn):
    counts, _ = drawn(pass_rate=(0.1, 0.8))
    kept = np.isin(np.arange(len(counts)) % 11, range(1, 9))  # both ends lie within; unknown rates do not
    np.testing.assert_array_equal(counts, kept.astype(int))
    both, _ = drawn(pass_rate=(0.1, 0.8), weights={"twice": 2.0})
    np.testing.assert_array_equal(both, kept * np.repeat([1, 2, 1, 1], EACH))


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            {"weights": {"twise": 2.0}},
            "names 'twise'; the records' data_source is 'common', 'half', 'never', 'twice'",
        ),
        ({"weights": dict.fromkeys(SOURCES, 0.0)}, "leave no record"),
        ({"pass_rate": (0.95, 1.0)}, "leave no record"),
    ],
)
def test_a_selection_of_nothing_is_refused(drawn, selection, message):
    with pytest.raises(UserError, match=message):
        drawn(**selection)


def test_a_file_without_pass_rates_is_refused():
    with pytest.raises(UserError, match=r"no record has a pass_rate; scripts/annotate\.py"):
        Selection(pass_rate=(0.0, 1.0)).copies(["a"], [None], 0)


def test_the_command_line_sets_both():
    words = ["--data.source-weights", "a", "2", "b c", "0.5", "--data.pass-rate", "0.1", "0.9"]
    data = load_config("configs/tgrpo_a100.py", words).data
    assert (data.source_weights, data.pass_rate) == ({"a": 2.0, "b c": 0.5}, (0.1, 0.9))
