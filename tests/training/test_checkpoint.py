"""Checkpoints survive kills, damage, full disks, and other meshes."""

import multiprocessing
import os
import random
import shutil
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny_state
from tiny_state import EVERY_STEP, abstract_state, checkpoints, largest_file, one_device, same, state_at

from vr1_jax import sharding
from vr1_jax.config import CheckpointConfig
from vr1_jax.errors import UserError
from vr1_jax.models.families import abstract_model
from vr1_jax.models.mapping import parameter_shapes, parameters
from vr1_jax.training import checkpoint, checkpoint_files
from vr1_jax.weights.array_store import StoredParameters

# Where a save fails, some of Orbax's writers end after the event loop that started them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def save_all(run: Path, steps, config=EVERY_STEP, mesh=None, metrics=None):
    mesh = mesh or one_device()
    with checkpoints(run, config) as saved:
        saved.restore(abstract_state(mesh))
        for step in steps:
            saved.save(state_at(step, mesh), {"next": step}, metrics[step] if metrics else {})


def present(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def restored_step(run: Path, **changes) -> int:
    mesh = one_device()
    with checkpoints(run, **changes) as saved:
        state, data_state = saved.restore(abstract_state(mesh))
    step = int(state.step)
    assert same(state, state_at(step, mesh))
    assert data_state == {"next": step}
    return step


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("two") / "run"
    save_all(run, (1, 2))
    return run


@pytest.fixture
def spoiled(two_steps, run) -> Path:
    """A run with checkpoints of steps 1 and 2, to spoil."""
    shutil.copytree(two_steps, run)
    return run


@pytest.mark.parametrize("axes", [(1, 2, 4), (2, 2, 2), None], ids=["2x4", "2x2x2", "1 device"])
def test_restores_bitwise_onto_another_mesh(run, axes):
    save_all(run, [7], mesh=sharding.make_mesh(1, 4, 2))
    mesh = sharding.make_mesh(*axes) if axes else one_device()
    with checkpoints(run) as saved:
        state, data_state = saved.restore(abstract_state(mesh))
    assert same(state, state_at(7, mesh))
    assert data_state == {"next": 7}
    wanted = jax.tree.leaves(abstract_state(mesh))
    assert [x.sharding for x in jax.tree.leaves(state)] == [x.sharding for x in wanted]


def test_nothing_to_restore(run):
    with checkpoints(run) as saved:
        assert saved.restore(abstract_state(one_device())) is None


def test_next_step_may_overwrite_the_state_while_it_is_written(run):
    mesh = sharding.make_mesh(1, 4, 2)
    update = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    expected, state = [], state_at(1, mesh)
    with checkpoints(run, CheckpointConfig(every=1, keep_last=9)) as saved:
        for step in range(1, 5):
            expected.append(jax.tree.map(lambda x: jnp.array(x, copy=True), state))
            data_state = {"next": step}
            saved.save(state, data_state, {})
            data_state["next"] = "changed"
            state = update(state)
            jax.block_until_ready(state)
    for step in (4, 3, 2, 1):
        with checkpoints(run) as saved:
            state, data_state = saved.restore(abstract_state(mesh))
        assert same(state, expected[step - 1])
        assert data_state == {"next": step}
        shutil.rmtree(run / f"checkpoints/{step}")


def test_saving_overlaps_with_the_next_step(run, monkeypatch):
    """`save` returns before the files are there, and a second one waits for the first."""
    release, complete = threading.Event(), checkpoint._complete

    def held_up(directory, *rest):
        release.wait()
        assert not directory.exists()  # though Orbax is done
        complete(directory, *rest)

    monkeypatch.setattr(checkpoint, "_complete", held_up)
    mesh = one_device()
    with checkpoints(run) as saved:
        saved.save(state_at(1, mesh), {"next": 1}, {})
        assert "1" not in present(run)
        threading.Timer(0.2, release.set).start()
        saved.save(state_at(2, mesh), {"next": 2}, {})
        assert "1" in present(run)
    assert present(run) == ["1", "2"]


def test_parameters_are_what_every_reader_of_models_reads(two_steps):
    model = state_at(2, one_device()).model
    stored = StoredParameters(
        two_steps / "checkpoints/2", parameter_shapes(abstract_model(tiny_state.tiny_config()))
    )
    for path, array in parameters(model).items():
        assert (stored.read(path, tuple(slice(0, n) for n in array.shape), array.dtype) == array).all()
    assert stored.dtypes == {jnp.dtype("float32")}


def test_last_and_best_are_kept(run):
    rewards = {1: 0.5, 2: 0.9, 3: 0.1, 4: float("nan"), 5: 0.9, 6: 0.2, 7: 0.3}
    metrics = {step: {"reward": reward} for step, reward in rewards.items()} | {3: {}}
    config = CheckpointConfig(every=1, keep_last=2, keep_best=2)
    save_all(run, (1, 2, 3), config, metrics=metrics)
    assert present(run) == ["1", "2", "3"]
    save_all(run, (4, 5, 6, 7), config, metrics=metrics)  # a resumed run knows what was best before
    assert present(run) == ["2", "5", "6", "7"]


def test_of_a_loss_the_smallest_is_best(run, caplog):
    losses = {1: 0.5, 2: 0.1, 3: float("nan"), 4: 0.3, 5: 0.9}
    config = CheckpointConfig(every=1, keep_last=1, keep_best=2, best_metric="-loss")
    metrics = {step: {"loss": loss} for step, loss in losses.items()} | {6: {}}
    save_all(run, (1, 2, 3, 4, 5, 6), config, metrics=metrics)
    assert present(run) == ["2", "4", "6"]
    assert "step 6 cannot be among the best: it has no metric loss" in caplog.text


@pytest.mark.parametrize("name", ["", "-", "--loss", "reward accuracy"])
def test_what_is_no_name_of_a_metric(name):
    with pytest.raises(UserError, match="best_metric is"):
        CheckpointConfig(best_metric=name)


def test_the_same_step_is_saved_once(run):
    """A periodic save, then the one before leaving; and one right after resuming."""
    save_all(run, (1, 1))
    save_all(run, (1,))
    assert present(run) == ["1"]


def test_another_runs_checkpoints_are_not_overwritten(two_steps):
    with checkpoints(two_steps) as saved, pytest.raises(UserError, match="2: exists"):
        saved.save(state_at(2, one_device()), {}, {})


def test_what_killed_runs_leave_is_cleared(spoiled):
    for name in ("3.saving", "3.saving.orbax-checkpoint-tmp", "0.removed"):
        (spoiled / "checkpoints" / name / "params").mkdir(parents=True)
    (spoiled / "checkpoints/notes.saving").mkdir()
    assert restored_step(spoiled) == 2
    assert present(spoiled) == ["1", "2", "notes.saving"]


def largest(step: Path) -> Path:
    return max(step.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)


def flip_byte(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("part", "spoil"),
    [
        ("params", flip_byte),
        ("params", cut),
        ("params", Path.unlink),
        ("trainer", flip_byte),
        ("progress.json", Path.unlink),
        ("checksums.0-of-1.json", cut),
        ("checksums.0-of-1.json", Path.unlink),
    ],
)
def test_a_damaged_latest_falls_back_and_says_so(spoiled, part, spoil, caplog):
    latest = spoiled / "checkpoints/2"
    spoil(largest(latest / part) if (latest / part).is_dir() else latest / part)
    assert restored_step(spoiled) == 1
    assert f"{latest} is damaged" in caplog.text
    assert "resuming from step 1" in caplog.text
    assert present(spoiled) == ["1", "2.damaged"]


def test_a_damaged_step_can_be_saved_again(spoiled):
    flip_byte(largest(spoiled / "checkpoints/2/params"))
    save_all(spoiled, [2])
    assert restored_step(spoiled) == 2


def test_every_flipped_byte_is_noticed(spoiled):
    draw = random.Random(0)
    directory = spoiled / "checkpoints/2"
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size):
        content = path.read_bytes()
        place = draw.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
        assert checkpoint._is_damaged(directory), path
        path.write_bytes(content)
    assert not checkpoint._is_damaged(directory)


def test_the_storage_format_alone_would_restore_altered_values(spoiled):
    """Why there are checksums."""
    directory, mesh = spoiled / "checkpoints/2", one_device()
    flip_byte(largest(directory / "params"))
    assert not same(checkpoint._load(directory, abstract_state(mesh)), state_at(2, mesh))


def test_only_damaged_ones_is_an_error_and_moves_nothing(spoiled):
    for step in "12":
        flip_byte(largest(spoiled / "checkpoints" / step / "params"))
    with (
        checkpoints(spoiled) as saved,
        pytest.raises(UserError, match=r"all .* damaged \(2, 1\)"),
    ):
        saved.restore(abstract_state(one_device()))
    assert present(spoiled) == ["1", "2"]


def test_a_failed_save_keeps_the_run_and_its_checkpoints(spoiled, caplog):
    mesh = one_device()
    with checkpoints(spoiled) as saved:
        saved.restore(abstract_state(mesh))
        with largest_file(10_000):
            saved.save(state_at(3, mesh), {"next": 3}, {})
            with pytest.raises(UserError, match="last checkpoint could not be saved"):
                saved.wait()
        assert "step 3 was not saved" in caplog.text
        assert "newest checkpoint is that of step 2" in caplog.text
        assert saved.failed_saves == 1
        # Orbax's writers may outlive their failure a little and leave a file; the next to open the run clears it.
        assert [name for name in present(spoiled) if name.isdigit()] == ["1", "2"]
        assert restored_step(spoiled) == 2
        saved.save(state_at(3, mesh), {"next": 3}, {})  # there is room again
    assert restored_step(spoiled) == 3
    assert all(name.isdigit() for name in present(spoiled))


def test_a_run_whose_last_save_failed_does_not_end_well(run):
    with largest_file(10_000), pytest.raises(UserError, match="could not be saved"):
        save_all(run, [1])


def test_what_ended_the_run_is_the_error_to_see(run):
    def failing():
        with checkpoints(run) as saved:
            saved.save(state_at(1, one_device()), {}, {})
            raise KeyError

    with largest_file(10_000), pytest.raises(KeyError):
        failing()


def test_resume_under_another_config(two_steps):
    with pytest.raises(UserError) as refusal:
        restored_step(two_steps, seed=1, optimizer={"learning_rate": 2e-6}, grpo={"beta": 0.04})
    message = str(refusal.value)
    assert "grpo.beta (absent) -> 0.04; optimizer.learning_rate 1e-06 -> 2e-06; seed 0 -> 1" in message
    assert "\n" not in message
    assert restored_step(two_steps, steps=20) == 2


def test_another_model_is_named(two_steps):
    mesh = one_device()
    other = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype, sharding=x.sharding) if x.shape else x,
        abstract_state(mesh),
    )
    with checkpoints(two_steps) as saved, pytest.raises(UserError, match="does not fit this model"):
        saved.restore(other)


@pytest.mark.parametrize("field", ["every", "keep_last", "keep_best"])
def test_settings_that_make_no_sense(field):
    with pytest.raises(UserError, match=field):
        CheckpointConfig(**{field: -1})


def test_killed_at_any_moment(run):
    """Ten times in one run; each successor finds a whole checkpoint, and loses no finished one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vr1_jax.training.checkpoint", "vr1_jax.training.steps"])
    draw, newest = random.Random(0), 0
    for _ in range(10):
        ours, theirs = context.Pipe()
        child = context.Process(target=tiny_state.save_until_killed, args=(run, theirs), daemon=True)
        child.start()
        theirs.close()
        step = ours.recv()  # EOFError: what it found was not whole
        assert step >= newest
        newest = max(newest, step)
        for _ in range(draw.randrange(4)):
            newest = max(newest, ours.recv() - 1)  # this one is under way, the one before is finished
        time.sleep(draw.uniform(0.0, 0.3))
        child.kill()
        child.join()
    assert newest > 5
    assert restored_step(run) >= newest
    assert not list((run / "checkpoints").glob("*.damaged"))  # nothing half-written ever had a step's name


def test_checksums_that_are_being_written_are_no_files_of_the_checkpoint(tmp_path):
    """Processes write theirs at the same time, and none may count another's."""
    (tmp_path / "array").write_bytes(b"1234")
    (tmp_path / ".checksums.0-of-2.json.17.partial").write_text("{")
    for process in range(2):
        checkpoint_files.write_checksums(tmp_path, process, 2)
    (tmp_path / ".checksums.0-of-2.json.17.partial").unlink()
    assert [checkpoint_files.damage(tmp_path, process, 2) for process in range(2)] == [None, None]
