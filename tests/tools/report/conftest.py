"""A run as training leaves one, its report, and a browser to open it with."""

import pytest
from browser import Browser, find_browser
from report_runs import Writer, sample
from tiny_world import write_image, write_video

from vr1_jax.data.tokenizer import ChatTokenizer, load_tokenizer
from vr1_jax.tools.report.write import write_report
from vr1_jax.tools.world.model import write_tokenizer


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer") / "hf"
    write_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory) -> ChatTokenizer:
    return load_tokenizer(tokenizer_directory)


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    root = tmp_path_factory.mktemp("media")
    for number in range(2):
        write_video(root / f"{number}.mp4", number)
    write_image(root / "still.png", 3)
    return root


@pytest.fixture(scope="session")
def make_run(tokenizer, tokenizer_directory, media):
    """(directory, steps) -> a run's writer, metrics and environment written, its tokenizer beside them."""

    def make(run, steps: int, *, stage: str = "rl", **settings) -> Writer:
        writer = Writer(run, media, tokenizer)
        writer.environment(steps, stage=stage, **settings)
        writer.metrics(steps, stage=stage)
        (run / "hf").symlink_to(tokenizer_directory)
        return writer

    return make


@pytest.fixture(scope="session")
def rl_run(make_run, tmp_path_factory):
    """Twelve steps of three questions: two clips that exist, one that does not."""
    run = tmp_path_factory.mktemp("runs") / "blinks"
    writer = make_run(run, 12)
    for step in range(12):
        samples = [sample(step, "0.mp4"), sample(step + 1, "./1.mp4"), sample(step + 2, "gone.mp4")]
        writer.rollouts(step, samples, done=step / 12)
    return run


@pytest.fixture(scope="session")
def report(rl_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("reports") / "report.html"
    write_report(rl_run, out)
    return out


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no chromium or chrome on PATH")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
