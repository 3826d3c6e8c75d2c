"""The run's numbers go to every sink that is asked for, and sinks are closed."""

import sys
from types import SimpleNamespace

import pytest

from vr1_jax.config import WatchConfig
from vr1_jax.training.metrics import MetricsLog, read_metrics


class Sink:
    """Stands for a tensorboardX writer or a wandb session."""

    def __init__(self, **settings):
        self.settings, self.points, self.closed = settings, [], False

    def add_scalar(self, name, value, step):
        self.points.append((step, name, value))

    def log(self, metrics, step):
        self.points += [(step, name, value) for name, value in metrics.items()]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True


@pytest.fixture
def sinks(monkeypatch):
    made = []

    def make(*_, **settings):
        made.append(Sink(**settings))
        return made[-1]

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=make))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=make))
    return made


def log_steps(run, steps, **watch):
    log = MetricsLog(run, WatchConfig(**watch), first_step=steps[0], config={}, writes=True)
    for step in steps:
        log.write(step, {"reward": step / 10})
    log.close()


def test_every_sink_gets_every_step_and_is_closed(tmp_path, sinks):
    log_steps(tmp_path, [0, 1], tensorboard=True, wandb_project="project")
    for sink in sinks:
        assert sink.points == [(0, "reward", 0.0), (1, "reward", 0.1)]
        assert sink.closed
    log_steps(tmp_path, [1, 2], tensorboard=True)
    assert sinks[-1].settings == {"purge_step": 1}
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2]


def test_a_run_keeps_its_identity_and_shares_it_with_none(tmp_path, sinks):
    for run in ("one/tgrpo", "two/tgrpo", "one/tgrpo"):
        (tmp_path / run).mkdir(parents=True, exist_ok=True)
        log_steps(tmp_path / run, [0], wandb_project="project")
    one, two, again = (sink.settings for sink in sinks)
    assert one["id"] == again["id"] != two["id"]
    assert one["name"] == two["name"] == "tgrpo"


def test_other_processes_write_nothing(tmp_path, sinks):
    log = MetricsLog(tmp_path, WatchConfig(tensorboard=True), first_step=0, config={}, writes=False)
    log.write(0, {"reward": 1.0})
    log.close()
    assert not sinks
    assert not list(tmp_path.iterdir())


def test_a_line_that_a_kill_left_unwritten_is_that_of_the_checkpoint(tmp_path):
    for steps, restored in (([0, 1], {}), ([3], {"reward": 0.2}), ([2, 3], {"reward": 0.1})):
        watch = WatchConfig()
        log = MetricsLog(tmp_path, watch, first_step=steps[0], config={}, writes=True, restored=restored)
        for step in steps:
            log.write(step, {"reward": step / 10})
        log.close()
        assert read_metrics(tmp_path) == [{"step": n, "reward": n / 10} for n in range(steps[-1] + 1)]
