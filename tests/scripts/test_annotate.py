"""The command from records to a set: what a random model says is dropped by name, what a good one says is kept;
stopped at any point it goes on, and ends with the same file."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vr1_jax.evaluation import answering
from vr1_jax.evaluation.chat import Answer

REPOSITORY = Path(__file__).resolve().parents[2]
PIXELS = str(56 * 56)
SMALL = ("--frames.max-frames", "4", "--frames.min-pixels", PIXELS, "--frames.max-pixels", PIXELS)
SMALL += ("--images.min-pixels", PIXELS, "--images.max-pixels", PIXELS, "--max-new-tokens", "8")
GOES_ON = "the same command goes on where it was"
RULES = ("--samples", "2", "--min-tokens", "3", "--max-similarity", "None", "--rows", "1")


@pytest.fixture(scope="session")
def main(load_command):
    return load_command("annotate").main


@pytest.fixture
def arguments(tiny_model, small_world, tmp_path):
    """Of a world, twice, without reasoning; one record has a broken video, one none at all, one no question."""
    records = json.loads((small_world / "train.json").read_text())
    plain = [{k: v for k, v in record.items() if k != "process"} for record in records]
    (small_world / "media/broken.mp4").write_bytes(b"no video")
    video = next(record for record in plain if record["data_type"] == "video")
    bad = [video | {"path": "./broken.mp4"}, video | {"path": "./gone.mp4"}, video | {"problem": None}]
    (tmp_path / "records.json").write_text(json.dumps(plain[:2] + bad + plain[2:] + plain))
    files = ["--records", tmp_path / "records.json", "--out", tmp_path / "cot.json"]
    given = ["--model", tiny_model, "--media-root", small_world / "media", *files, *SMALL, *RULES]
    return [str(argument) for argument in given]


@dataclasses.dataclass
class Scripted:
    """In the place of a model: the world's own rationale to each record, then one without tags."""

    texts: dict[int, str]
    asked: list[int] = dataclasses.field(default_factory=list)
    batches_left: int = 1000

    def __call__(self, chat, prompts, numbers, shape, config, *, seed, n):
        if self.batches_left == 0:
            raise KeyboardInterrupt
        self.batches_left -= 1
        self.asked += numbers
        return [[self.answer(self.texts[number]), self.answer("I see.")] for number in numbers]

    def answer(self, text: str) -> Answer:
        return Answer(text, [1, 2], [-0.5, -0.5], stopped=True)


@pytest.fixture
def scripted(small_world, monkeypatch) -> Scripted:
    records = 2 * json.loads((small_world / "train.json").read_text())
    places = [0, 1, *range(5, 3 + len(records))]
    script = Scripted({n: f"{r['process']} {r['solution']}" for n, r in zip(places, records, strict=True)})
    monkeypatch.setattr(answering, "batch_answers", script)
    return script


def test_a_random_model_is_refused_by_name(main, arguments, tmp_path, capsys):
    records = json.loads((tmp_path / "records.json").read_text())
    images = [n for n, record in enumerate(records[:10]) if record["data_type"] == "image"]
    kept = [records[n] for n in (2, 3, 4, *images)]  # of one size: one program to compile
    (tmp_path / "records.json").write_text("".join(f"{json.dumps(record)}\n" for record in kept))
    assert main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "nothing was kept" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cot.json.rated.jsonl",
        "cot.json.report.json",
        "cot.json.samples.jsonl",
        "records.json",
    ]
    report = json.loads((tmp_path / "cot.json.report.json").read_text())
    assert report["records"]["all"] == 6
    assert report["refused"]["by_reason"] == {"undecodable": 1, "path": 1, "record": 1}
    assert [refusal["record"] for refusal in report["refused"]["records"]] == [0, 1, 2]
    assert "broken.mp4" in report["refused"]["records"][0]["error"]
    assert report["answers"]["sampled"] == sum(report["answers"]["dropped"].values()) == 6
    assert set(report["answers"]["dropped"]) <= {"unfinished", "format"}
    drawn = [line["result"].get("drafts") for line in samples(tmp_path)]
    assert len({draft["text"] for drafts in drawn if drafts for draft in drafts}) == 6


def samples(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "cot.json.samples.jsonl").read_text().splitlines()[1:]]


def test_stopped_it_goes_on_and_other_rules_sample_nothing(main, arguments, scripted, tmp_path, capsys):
    assert main(arguments) == 0
    whole = (tmp_path / "cot.json").read_bytes()
    assert [record["process"] for record in json.loads(whole)] == [
        text.split(" <answer>")[0] for text in scripted.texts.values()
    ]
    assert "14 kept" in capsys.readouterr().out
    assert sorted(scripted.asked) == sorted(scripted.texts)

    (tmp_path / "cot.json").unlink()
    (tmp_path / "cot.json.samples.jsonl").unlink()
    scripted.asked.clear()
    scripted.batches_left = 1
    assert main(arguments) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"annotate: interrupted; {GOES_ON}"
    assert not (tmp_path / "cot.json").exists()
    scripted.batches_left = 1
    assert main(arguments) == 0
    assert (tmp_path / "cot.json").read_bytes() == whole
    assert sorted(scripted.asked) == sorted(scripted.texts)  # nothing twice

    scripted.asked.clear()
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force", "--max-tokens", "3"]) == 1
    assert (tmp_path / "cot.json").read_bytes() == whole  # nothing kept replaces nothing
    assert main([*arguments, "--force", "--no-check-conclusion"]) == 0
    assert scripted.asked == []


KILLED = """
import importlib.util, json, os, signal, sys
sys.path.insert(0, {tests!r})
from vr1_jax.evaluation import answering
from test_annotate import Scripted

class Killed(Scripted):
    def __call__(self, *arguments, **settings):
        if self.asked:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(*arguments, **settings)

answering.batch_answers = Killed({texts!r})
spec = importlib.util.spec_from_file_location("annotate", {script!r})
module = sys.modules["annotate"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.main({arguments!r})
"""


def test_killed_it_goes_on(main, arguments, scripted, tmp_path):
    program = KILLED.format(
        tests=str(Path(__file__).parent),
        texts=scripted.texts,
        script=str(REPOSITORY / "scripts/annotate.py"),
        arguments=arguments,
    )
    run = subprocess.run([sys.executable, "-c", program], env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False)
    assert run.returncode == -signal.SIGKILL
    before = {line["number"] for line in samples(tmp_path)}
    assert before & set(scripted.texts)
    assert not (tmp_path / "cot.json").exists()
    assert main(arguments) == 0
    assert sorted([*scripted.asked, *before - {2, 3, 4}]) == sorted(scripted.texts)  # nothing twice
    assert len(json.loads((tmp_path / "cot.json").read_text())) == len(scripted.texts)


def test_a_config_file_is_read_and_overridden(main, arguments, scripted, tmp_path, capsys):
    (tmp_path / "config.py").write_text(
        "from pathlib import Path\n"
        "from vr1_jax.tools.annotate.config import AnnotateConfig\n"
        "def get_config():\n"
        "    return AnnotateConfig(*map(Path, ('a', 'b', 'c', 'd')), seed=7)\n"
    )
    assert main(["--config", str(tmp_path / "config.py"), *arguments, "--min-reward", "0.9"]) == 0
    settings = json.loads((tmp_path / "cot.json.report.json").read_text())["settings"]
    assert (settings["seed"], settings["samples"], settings["keep"]["min_reward"]) == (7, 2, 0.9)
    assert main(["--config", str(tmp_path / "config.py"), *arguments, "--force", "--seed", "8"]) == 2
    assert "made with seed 7, not 8" in capsys.readouterr().err


def test_mistakes_are_one_line(main, arguments, small_world, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "numbers.json").write_text("[1, 2]")
    (tmp_path / "garbage.json").write_bytes(bytes(range(256)))
    (tmp_path / "typo.py").write_text("def get_config(:")
    (tmp_path / "name.py").write_text("def get_config():\n    return nothing\n")
    before = sorted(tmp_path.rglob("*"))
    for more, code, reason in (
        (["--model", tmp_path / "nowhere"], 1, "nowhere: no such directory"),
        (["--model", tmp_path / "folder"], 1, "folder: neither"),
        (["--model", small_world / "tiny"], 1, "neither model.safetensors"),
        (["--records", tmp_path / "nowhere.json"], 1, "nowhere.json: No such file"),
        (["--records", tmp_path / "folder"], 1, "folder: Is a directory"),
        (["--records", tmp_path / "empty.json"], 1, "the file is empty"),
        (["--records", tmp_path / "none.json"], 1, "holds no records"),
        (["--records", tmp_path / "numbers.json"], 1, "record 0 is not an object"),
        (["--records", tmp_path / "garbage.json"], 1, "neither a JSON list nor JSON lines"),
        (["--media-root", tmp_path / "nowhere"], 2, "--media-root"),
        (["--out", tmp_path / "folder"], 2, "is a directory"),
        (["--out", tmp_path / "records.json"], 2, "would replace what is read"),
        (["--out", tmp_path / "empty.json" / "x"], 2, "empty.json: is not a directory"),
        (["--out", "/dev/full", "--force"], 2, "no regular file"),
        (["--out", "/proc/cot.json"], 1, "/proc/cot.json"),
        (["--tensor", "3"], 2, "mesh"),
        (["--config", tmp_path / "nowhere.py"], 2, "no such file"),
        (["--config", tmp_path / "typo.py"], 2, "typo.py line 1: SyntaxError"),
        (["--config", tmp_path / "name.py"], 2, "name.py line 2: NameError"),
        (["--config", tmp_path / "empty.json"], 2, "no get_config()"),
    ):
        assert main([*arguments, *map(str, more)]) == code, more
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before, more
    for more, reason in (
        (["--min-reward", "2"], "min_reward is 2"),
        (["--samples", "0"], "samples is 0"),
        (["--temperature", "0"], "samples to 1"),
        (["--frames.max-frames", "0"], "max_frames"),
        (["--sample", "3"], "--sample"),
    ):
        assert main([*arguments, *more]) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
