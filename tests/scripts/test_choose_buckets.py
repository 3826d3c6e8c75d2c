import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_world import write_source

from vr1_jax.tools.world.model import tiny_config, write_model_directory

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("source")
    source = write_source(directory, images=20, videos=20, bad_share=0.2, files=4)
    write_model_directory(directory / "tiny", tiny_config())

    def run(*more):
        given = [
            "--records",
            source.records.path,
            "--media-root",
            source.media_root,
            "--model",
            directory / "tiny",
        ]
        given += ["--frame-pixels", 56 * 56, *more]
        command = [sys.executable, "scripts/choose_buckets.py", *map(str, given)]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    return run


def test_prints_buckets_for_the_config_and_keeps_all_sizes(run, tmp_path):
    answer = run("--count", 2, "--sizes", tmp_path / "sizes.npy")
    assert answer.returncode == 0, answer.stderr
    assert '"image": (Bucket(slices=1, patches=16, tokens=' in answer.stdout
    assert '"video": (Bucket(slices=4, patches=16, tokens=' in answer.stdout
    assert "cannot be used: " in answer.stdout
    sizes = np.load(tmp_path / "sizes.npy")
    assert sizes.shape == (40, 3)
    assert 0 < (sizes[:, 0] < 0).sum() < 20
    again = run("--sizes", tmp_path / "sizes.npy")
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_mistakes_get_one_line(run, tmp_path):
    for more, code, message in [
        (["--count", 1], 2, "--count: 1 buckets for 2 kinds"),
        (["--count", 0], 2, "at least 1"),
        (["--frames", 1], 2, "--frames"),
        (["--model", tmp_path], 1, "tokenizer.json"),
        (["--records", tmp_path / "none.json"], 1, "none.json"),
    ]:
        answer = run(*more)
        assert answer.returncode == code
        assert message in answer.stderr
        assert "Traceback" not in answer.stderr
