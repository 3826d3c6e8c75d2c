"""A training state of a tiny model whose every value says which step it belongs to, and a loop that saves it."""

import resource
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vr1_jax import sharding
from vr1_jax.config import CheckpointConfig, OptimizerConfig
from vr1_jax.models.config import ModelConfig, TextConfig, VisionConfig
from vr1_jax.models.families import abstract_model
from vr1_jax.training.checkpoint import Checkpoints
from vr1_jax.training.steps import init_state
from vr1_jax.types import TrainState

RUN_CONFIG = {"seed": 0, "optimizer": {"learning_rate": 1e-6}, "steps": 10}
EVERY_STEP = CheckpointConfig(every=1, keep_last=3)


def tiny_config() -> ModelConfig:
    return ModelConfig(
        text=TextConfig(2, 64, 8, 4, 96, 300, (1, 1, 2), 1e6, 1e-6, tied=False),
        vision=VisionConfig(2, 64, 4, 80, 64, (1,)),
        image_token=290,
        video_token=291,
        vision_start_token=292,
        vision_end_token=293,
        model_type="qwen2_5_vl",
    )


def abstract_state(mesh: jax.sharding.Mesh) -> TrainState:
    state = jax.eval_shape(lambda: init_state(_zeros(abstract_model(tiny_config())), OptimizerConfig()))
    return sharding.abstract(state, sharding.TRAIN_RULES, mesh)


def state_at(step: int, mesh: jax.sharding.Mesh) -> TrainState:
    """No two values of an array are equal, and none is that of another step."""

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = step + np.arange(np.prod(leaf.shape)).reshape(leaf.shape) / 2**20
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, abstract_state(mesh))


def same(a: TrainState, b: TrainState) -> bool:
    return all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def one_device() -> jax.sharding.Mesh:
    return sharding.make_mesh(devices=jax.devices()[:1])


def checkpoints(run: Path, config: CheckpointConfig = EVERY_STEP, **changes) -> Checkpoints:
    return Checkpoints(run, config, RUN_CONFIG | changes, harmless=("steps",))


@contextmanager
def largest_file(size: int):
    """A disk that takes no larger files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_until_killed(run: Path, connection) -> None:
    """Resume, check what was found, then save step after step, and say so before each."""
    mesh = one_device()
    with checkpoints(run) as saved:
        restored = saved.restore(abstract_state(mesh))
        step = int(restored.state.step) if restored else 0
        if restored:
            assert same(restored.state, state_at(step, mesh))
            assert restored.data_state == {"next": step}
        while True:
            connection.send(step)
            step += 1
            saved.save(state_at(step, mesh), {"next": step}, {"reward": step / 10})


def _zeros(model):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model)
