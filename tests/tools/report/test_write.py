"""What goes into the file: thinning, damage, and the refusal of what is no run."""

import base64
import gzip
import itertools
import json
import re
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import sample

from vr1_jax.errors import UsageError, UserError
from vr1_jax.tools.report.pages import frame_order, spread_out
from vr1_jax.tools.report.write import write_report


def unpack(path, name):
    packed = re.search(f'id="{name}">([^<]*)<', path.read_text()).group(1)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_everything_of_a_small_run_is_in_it(rl_run, report):
    summary = unpack(report, "summary")
    assert summary["shown"] == list(range(12)) == summary["metrics"]["step"]
    assert summary["map"].keys() == {str(step) for step in range(12)}
    assert any("gone.mp4" in note for note in summary["notes"])
    (first, _, lost) = unpack(report, "step-11")
    assert first["order"] == [3, 1, 0, 2, 7, 5, 6, 4]
    assert "gone.mp4" in lost["frames"]["missing"]
    for prompt in (first, lost):
        assert [len(group) for group in prompt["groups"]] == [4, 2]
        for answer in prompt["groups"][0]:
            assert len(answer["pieces"]) == len(answer["logps"]) == answer["tokens"]
            assert sum(answer["parts"].values()) == pytest.approx(answer["reward"], abs=5e-3)


def test_a_clip_is_decoded_and_kept_once(report):
    assert len(re.findall('id="strip-', report.read_text())) == 2
    strip = json.loads(re.search('id="strip-0">([^<]*)<', report.read_text()).group(1))
    assert (strip["count"], strip["seconds"][:3]) == (8, [0.0, 0.5, 1.0])


def test_thinned_to_the_budget_and_says_so(rl_run, tmp_path):
    written = write_report(rl_run, tmp_path / "report.html", megabytes=0.012)
    summary = unpack(tmp_path / "report.html", "summary")
    assert 1 < written.steps_shown < written.steps_with_answers == 12
    assert summary["shown"][0] == 0
    assert summary["shown"][-1] == 11
    assert len(summary["metrics"]["reward"]) == len(summary["map"]) == 12
    assert any(f"answers and frames of {written.steps_shown} of 12 steps" in note for note in summary["notes"])


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 300), st.integers(2, 300))
def test_wherever_thinning_stops_the_kept_are_spread(count, stop):
    steps = spread_out(range(count))
    assert sorted(steps) == list(range(count))
    kept = sorted(steps[:stop])
    gaps = [b - a for a, b in itertools.pairwise(kept)]
    assert max(gaps, default=0) <= max(2, 4 * count / max(1, len(kept)))


def test_slices_become_frames():
    assert frame_order({"order": [1, 0], "shuffled_by": "slices", "frames": 4}) == [2, 3, 0, 1]
    assert frame_order({"order": [1, 0], "shuffled_by": "frames", "frames": 2}) == [1, 0]
    assert frame_order({}) is None


def test_damaged_rollouts_are_named_and_left_out(rl_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(rl_run, run)
    files = sorted((run / "rollouts").iterdir())
    files[3].write_bytes(files[3].read_bytes()[:200])
    damaged = bytearray(files[5].read_bytes())
    damaged[60:200] = bytes(140)
    files[5].write_bytes(damaged)
    content = json.loads(gzip.decompress(files[4].read_bytes()))
    del content["prompts"][0]["groups"][0]["tokens"]
    files[4].write_bytes(gzip.compress(json.dumps(content).encode()))
    (run / "environment.json").write_text("{")
    written = write_report(run, tmp_path / "report.html")
    assert written.steps_shown == 9
    assert sum("000003.0.0.json.gz cannot be read" in note for note in written.notes) == 1
    assert any("000004.0.0.json.gz cannot be read (KeyError: 'tokens')" in note for note in written.notes)
    assert any("environment.json" in note for note in written.notes)


def test_texts_without_a_form_in_utf8_survive(make_run, tmp_path):
    writer = make_run(tmp_path / "run", 1)
    writer.rollouts(0, [sample(0, "0.mp4", problem="half \ud83d a pair")])
    write_report(tmp_path / "run", tmp_path / "report.html")
    assert unpack(tmp_path / "report.html", "step-0")[0]["problem"] == "half \ud83d a pair"


def test_runs_that_cannot_be_reported(rl_run, report, tmp_path):
    with pytest.raises(UserError, match=r"no metrics.jsonl in it; give the directory of a run"):
        write_report(tmp_path, tmp_path / "out.html")
    with pytest.raises(UserError, match=r"did you mean .*blinks"):
        write_report(rl_run.parent, tmp_path / "out.html")
    with pytest.raises(UsageError):
        write_report(rl_run, report)
    broken = {"": "no step is finished", "{\n": "metrics.jsonl", '{"loss": 1}\n': "line 1 has no step"}
    for content, message in broken.items():
        (tmp_path / "metrics.jsonl").write_text(content)
        with pytest.raises(UserError, match=message):
            write_report(tmp_path, tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()
