"""Every command asks a model as it was trained, unless told otherwise."""

import json
import shutil
from pathlib import Path

import pytest
from commands import load_command

from vr1_jax.data.prompts import Presentation, read_presentation, write_presentation
from vr1_jax.media.frames import FrameBudget, ImageBudget
from vr1_jax.weights.conversion import hf_to_flax

PIXELS = 56 * 56
TRAINED = Presentation(
    prompt="upstream",
    stage="sft",
    frames=FrameBudget(max_frames=4, min_pixels=PIXELS, max_pixels=PIXELS),
    images=ImageBudget(min_pixels=PIXELS, max_pixels=PIXELS),
    spacing="constant",
)
# The same, said on a command line. The system turn of upstream's supervised training has no flag.
TOLD = ["--frames", 4, "--frame-pixels", PIXELS, "--image-pixels", PIXELS, "--spacing", "constant"]


@pytest.fixture(scope="module")
def models(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """The same weights: as a run with settings of its own left them, exported from it, and without settings."""
    root = tmp_path_factory.mktemp("models")
    hf_to_flax(tiny_model, root / "run")
    write_presentation(root / "run/hf", TRAINED)
    command = load_command("convert/flax_to_hf.py")
    exported = ["--checkpoint", root / "run", "--out", root / "exported", "--dtype", "float32"]
    assert command.main([str(word) for word in exported]) == 0
    return {"run": root / "run", "exported": root / "exported", "plain": tiny_model}


@pytest.fixture(scope="module")
def asked(small_world, tmp_path_factory) -> Path:
    """A slow video, a video and an image."""
    found = {record["data_type"]: record for record in json.loads((small_world / "train.json").read_text())}
    records = [found["video"] | {"path": "./slow.mp4"}, found["video"], found["image"]]
    path = tmp_path_factory.mktemp("asked") / "records.json"
    path.write_text(json.dumps([record | {"completion": "<answer>A</answer>"} for record in records]))
    return path


@pytest.fixture
def call(load_command, tmp_path, small_world, capsys):
    """A command's name, its model and more -> where its output is, or what it printed."""

    def run(name: str, model: Path, *more) -> Path:
        out = tmp_path / f"{name}.{len(list(tmp_path.iterdir()))}"
        files = ["--model", model, "--media-root", small_world / "media", "--out", out]
        assert load_command(name).main([str(word) for word in (*files, *more)]) == 0
        return out

    return run


def test_settings_survive_export_and_import(models, tmp_path):
    assert read_presentation(models["exported"]) == TRAINED
    hf_to_flax(models["exported"], tmp_path / "again")
    assert read_presentation(tmp_path / "again/hf") == TRAINED


def test_score(call, models, asked):
    def score(model, *more):
        lines = call("score", models[model], "--records", asked, *more).read_text().splitlines()
        return [json.loads(line) for line in lines]

    of_run = score("run")
    assert score("exported") == of_run
    # Told all but the stage's system turn, the plain model is asked the same: that is one token shorter or longer.
    told = score("plain", *TOLD, "--prompt", "upstream")
    lengths = [[line["prompt_tokens"] for line in lines] for lines in (of_run, told)]
    assert {a - b for a, b in zip(*lengths, strict=True)} == {-1}  # upstream's has no full stop
    assert [line["prompt_tokens"] for line in score("plain")] != lengths[1]
    assert score("run", "--spacing", "measured")[0]["logprobs"] != of_run[0]["logprobs"]


def test_evaluate(call, models, asked):
    usual = ["--annotations", asked, "--frames", 4, "--max-new-tokens", 4, "--greedy", "--workers", 1]

    def passport(model, *more):
        found = json.loads(call("evaluate", models[model], *usual, *more).read_text())
        assert found["summary"]["broken"] == 0
        return found

    of_run, told = passport("run"), passport("plain", *TOLD[2:], "--prompt", "upstream")
    for name in ("prompt", "frames", "images", "positions", "spacing", "decoding"):
        assert of_run["passport"][name] == told["passport"][name], name
    assert of_run["passport"]["images"]["max_pixels"] == PIXELS
    assert of_run["passport"]["spacing"] == "constant"
    assert "the <think> and </think> tags" in of_run["passport"]["prompt"]["instruction"]
    outputs = [[result["output"] for result in found["results"]] for found in (of_run, told)]
    assert outputs[0] == outputs[1]
    otherwise = passport("run", "--spacing", "measured", "--prompt", "fixed")["passport"]
    assert (otherwise["spacing"], otherwise["prompt"]["preset"]) == ("measured", "fixed")


def test_generate(load_command, models, small_world, capsys):
    def ask(model, *more):
        video = ["--video", small_world / "media/slow.mp4", "--question", "What?", "--greedy", "--json"]
        words = ["--model", models[model], *video, "--max-new-tokens", 3, *more]
        assert load_command("generate").main([str(word) for word in words]) == 0
        return json.loads(capsys.readouterr().out)

    of_run, told, plain = ask("run"), ask("plain", *TOLD), ask("plain")
    assert of_run["media"] == told["media"]
    assert of_run["completions"] == told["completions"]
    assert of_run["media"]["size"] == [56, 56]
    assert len(plain["media"]["frames"]) == 16
    counted = ask("run", "--problem-type", "numerical")["prompt_tokens"]
    told = ask("plain", *TOLD, "--problem-type", "numerical", "--prompt", "upstream")
    assert counted == told["prompt_tokens"] - 1


def test_annotate(models, asked, small_world, tmp_path):
    from vr1_jax.tools.annotate.config import load_annotate_config

    files = ["--records", asked, "--media-root", small_world / "media", "--out", tmp_path / "cot.json"]

    def config(model, *more, path=None):
        return load_annotate_config(path, [str(w) for w in ("--model", models[model], *files, *more)])

    of_run = config("run").asked
    assert of_run == TRAINED.evaluated()
    assert config("plain").asked == Presentation(stage="evaluation")
    told = config("run", "--frames.max-frames", 6, "--prompt", "fixed").asked
    assert (told.prompt, told.frames.max_frames, told.frames.max_pixels) == ("fixed", 6, PIXELS)
    file = tmp_path / "config.py"
    file.write_text(
        "from pathlib import Path\nfrom vr1_jax.tools.annotate.config import AnnotateConfig\n"
        "def get_config():\n"
        "    paths = map(Path, 'mrdo')\n"
        "    return AnnotateConfig(*paths, positions='transformers5', samples=3)\n"
    )
    from_file = config("run", path=str(file))
    assert (from_file.positions, from_file.spacing, from_file.samples) == ("transformers5", "constant", 3)


def test_a_broken_file_is_one_line(load_command, models, tmp_path, asked, small_world, capsys):
    shutil.copytree(models["run"], tmp_path / "broken")
    (tmp_path / "broken/hf/presentation.json").write_text('{"frames": []}')
    files = ["--model", tmp_path / "broken", "--media-root", small_world / "media", "--out", tmp_path / "out"]
    for name, records in (("score", "--records"), ("evaluate", "--annotations"), ("annotate", "--records")):
        words = [*files, records, asked, *(["--frames", 4] if name == "evaluate" else [])]
        assert load_command(name).main([str(word) for word in words]) == 1
        error = capsys.readouterr().err
        assert "presentation.json: frames is not an object" in error
        assert error.count("\n") == 1
