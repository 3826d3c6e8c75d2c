"""Log-probs of the command equal transformers', whatever else is in the file."""

import json

import numpy as np
import pytest

from vr1_jax.data.prompts import ANSWER_FORM, PONDER, TRAINING_TAGS

TOLERANCE = 1e-4
COMPLETIONS = (
    "<think>It moves.</think>\n<answer>A</answer>",
    "B",
    "",
    "<think>Erst ein Käfer 🐞, dann nichts; the word <|im_end|> is text.</think> <answer>left</answer>",
    "no tags at all " * 12,
    "<answer>7</answer>",
    "1",
)


@pytest.fixture(scope="session")
def main(load_command):
    return load_command("score").main


@pytest.fixture(scope="session")
def records(small_world) -> list[dict]:
    """Video, image and text records, each with a completion."""
    found = json.loads((small_world / "train.json").read_text())
    assert {record["data_type"] for record in found} == {"video", "image"}
    text = {key: value for key, value in found[0].items() if key != "path"} | {"data_type": "text"}
    return [record | {"completion": c} for record, c in zip([*found, text], [*COMPLETIONS, "2"], strict=True)]


@pytest.fixture(scope="session")
def run(main, tiny_model, small_world, tmp_path_factory):
    """Lines of text or records -> exit code and output records."""

    def call(lines, *more, model=tiny_model):
        folder = tmp_path_factory.mktemp("score")
        text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (folder / "in.jsonl").write_text("".join(f"{line}\n" for line in text))
        files = ["--records", str(folder / "in.jsonl"), "--out", str(folder / "out.jsonl")]
        code = main(["--model", str(model), *files, "--media-root", str(small_world / "media"), *more])
        out = folder / "out.jsonl"
        assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl", "out.jsonl"][: 1 + out.exists()]
        return code, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else None

    return call


@pytest.fixture(scope="session")
def scored(run, records):
    code, lines = run(records)
    assert code == 0
    return lines


def user_text(record: dict) -> str:
    options = ""
    if record["problem_type"] == "multiple choice":
        options = "Options:\n" + "".join(f"{option}\n" for option in record["options"])
    return f"{record['problem']}{options}\n{PONDER}{TRAINING_TAGS}{ANSWER_FORM[record['problem_type']]}"


def reference_result(reference, see, world, record, rule="published", frames=16):
    media = None if record["data_type"] == "text" else see(world / "media" / record["path"], frames)
    prompt = reference.prompt(user_text(record), media)
    encode = reference.tokenizer
    answer = encode.encode(record["completion"], add_special_tokens=False, split_special_tokens=True)
    answer.append(encode.convert_tokens_to_ids("<|im_end|>"))
    logps = reference.logps(prompt, media, answer, rule)
    return len(prompt[0]), answer, logps[np.arange(len(answer)), answer]


def worst(lines, records, reference, see, world, rule="published", frames=16) -> float:
    largest = 0.0
    for line, record in zip(lines, records, strict=True):
        length, answer, logps = reference_result(reference, see, world, record, rule, frames)
        assert (line["prompt_tokens"], line["token_ids"], line["error"]) == (length, answer, None)
        largest = max(largest, np.abs(np.array(line["logprobs"]) - logps).max())
    return largest


def test_equal_to_transformers(scored, records, reference, see, small_world):
    assert [line["index"] for line in scored] == list(range(len(records)))
    assert worst(scored, records, reference, see, small_world) <= TOLERANCE


def test_both_rules_of_positions_and_fewer_frames(run, records, reference, see, small_world):
    image = next(record for record in records if record["data_type"] == "image")
    video = next(record for record in records if record["data_type"] == "video")
    asked = [video | {"path": "./slow.mp4"}, video, image]
    by_rule = {}
    for rule in ("published", "transformers5"):
        code, by_rule[rule] = run(asked, "--positions", rule, "--frames", "4")
        assert code == 0
        assert worst(by_rule[rule], asked, reference, see, small_world, rule, frames=4) <= TOLERANCE
    # The comparison can fail: on a slow clip the rules differ.
    gaps = [
        np.abs(np.subtract(a["logprobs"], b["logprobs"])).max() for a, b in zip(*by_rule.values(), strict=True)
    ]
    assert gaps[0] > 100 * TOLERANCE
    assert gaps[2] == 0


def test_batching_changes_nothing(run, scored, records):
    """Alone, in another order, and among many: the same log-probs."""
    order = [5, 2, 7, 0, 2, 2, 1, 6, 3, 4, 0]
    _, shuffled = run([records[n] for n in order])
    _, alone = run([records[3]])
    for line, n in [*zip(shuffled, order, strict=True), (alone[0], 3)]:
        assert line["token_ids"] == scored[n]["token_ids"]
        np.testing.assert_allclose(line["logprobs"], scored[n]["logprobs"], atol=TOLERANCE / 2, rtol=0)


def test_converted_checkpoint(run, scored, records, tiny_model, tmp_path):
    from vr1_jax.weights.conversion import hf_to_flax

    hf_to_flax(tiny_model, tmp_path / "converted")
    code, lines = run(records[:2], model=tmp_path / "converted")
    assert code == 0
    for line, expected in zip(lines, scored[:2], strict=True):
        np.testing.assert_allclose(line["logprobs"], expected["logprobs"], atol=TOLERANCE / 2, rtol=0)


def test_bfloat16_is_close(run, scored, records):
    code, lines = run(records[:2], "--dtype", "bfloat16")
    assert code == 0
    gaps = [np.abs(np.subtract(a["logprobs"], b["logprobs"])).mean() for a, b in zip(lines, scored, strict=False)]
    assert 0 < max(gaps) < 0.2


def test_bad_lines_cost_themselves(run, scored, records, capsys):
    good = records[1]
    without = {key: value for key, value in good.items() if key != "completion"}
    bad = {
        "no such media": good | {"path": "./nowhere.png"},
        "outside": good | {"path": "../train.json"},
        "not JSON": '{"problem": ',
        "a list": "[1, 2]",
        "no completion": without,
        "null": good | {"completion": None},
        "surrogate": good | {"completion": "\ud800"},
        "no problem": good | {"problem": None},
    }
    lines = [good, *bad.values(), "", records[4]]
    code, found = run(lines)
    assert code == 0
    assert [line["index"] for line in found] == [*range(len(bad) + 1), len(bad) + 2]  # the blank line counts
    for line, why in zip(found[1:-1], bad, strict=True):
        assert line["error"], why
        assert "\n" not in line["error"]
        assert (line["token_ids"], line["logprobs"]) == ([], [])
    assert [found[n]["error"] for n in (0, -1)] == [None, None]
    np.testing.assert_allclose(found[-1]["logprobs"], scored[4]["logprobs"], atol=TOLERANCE / 2, rtol=0)
    assert f"2 of {len(bad) + 2} scored, {len(bad)} errors" in capsys.readouterr().out


def test_a_json_list_is_read_too(main, tiny_model, small_world, scored, records, tmp_path, capsys):
    files = ["--model", str(tiny_model), "--media-root", str(small_world / "media"), "--records"]

    def score(content: str, name: str):
        (tmp_path / f"{name}.json").write_text(content)
        return main([*files, str(tmp_path / f"{name}.json"), "--out", str(tmp_path / f"{name}.out")])

    broken = [records[1], records[0] | {"problem": None}, records[4]]
    assert score(f"\n {json.dumps(broken, indent=1)}\n", "list") == 0
    found = [json.loads(line) for line in (tmp_path / "list.out").read_text().splitlines()]
    assert [line["index"] for line in found] == [0, 1, 2]
    assert "field 'problem': is null" in found[1]["error"]
    for line, n in ((found[0], 1), (found[2], 4)):
        np.testing.assert_allclose(line["logprobs"], scored[n]["logprobs"], atol=TOLERANCE / 2, rtol=0)
    capsys.readouterr()
    assert score("[1, 2]", "numbers") == 1
    assert "record 0 is not an object" in capsys.readouterr().err
    assert score("[]", "empty") == 1
    assert "holds no records" in capsys.readouterr().err


def test_nothing_scored_is_a_failure(run, records):
    code, lines = run([records[0] | {"path": "./nowhere.mp4"}])
    assert code == 1
    assert len(lines) == 1


def test_mistakes_are_one_line(main, tiny_model, small_world, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text("{}\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "there.jsonl").write_text("kept")
    (tmp_path / "folder").mkdir()
    usual = {"model": tiny_model, "records": tmp_path / "in.jsonl", "out": tmp_path / "out.jsonl"}
    usual["media-root"] = small_world / "media"
    for change, code, reason in (
        ({"model": tmp_path / "nowhere"}, 1, "nowhere: no such directory"),
        ({"model": tmp_path / "folder"}, 1, "no tokenizer.json"),
        ({"model": small_world / "tiny"}, 1, "neither model.safetensors"),
        ({"records": tmp_path / "nowhere"}, 1, "nowhere: No such file"),
        ({"records": tmp_path / "empty.jsonl"}, 1, "holds no records"),
        ({"media-root": tmp_path / "nowhere"}, 2, "--media-root"),
        ({"out": tmp_path / "there.jsonl"}, 2, "--force"),
        ({"out": tmp_path / "folder"}, 2, "is a directory"),
        ({"out": tmp_path / "in.jsonl"}, 2, "would replace what is read"),
        ({"frames": 1}, 2, "--frames"),
    ):
        arguments = [part for name, value in (usual | change).items() for part in (f"--{name}", str(value))]
        assert main(arguments) == code
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()
    assert (tmp_path / "there.jsonl").read_text() == "kept"


def test_force_replaces(main, tiny_model, small_world, records, tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps(records[1]))
    (tmp_path / "out.jsonl").write_text("old")
    arguments = ["--model", tiny_model, "--records", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl"]
    assert main([*map(str, arguments), "--media-root", str(small_world / "media"), "--force"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["index"] == 0
