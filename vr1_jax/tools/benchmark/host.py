"""The host's part: batches out of the data pipeline, and weights from disk into device memory."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from vr1_jax.tools.benchmark import inputs
from vr1_jax.tools.benchmark.phases import Timings, repeat
from vr1_jax.tools.benchmark.sizes import Setting
from vr1_jax.tools.benchmark.timing import Stopwatch

if TYPE_CHECKING:
    from vr1_jax.config import TrainConfig


def measure_data(config: "TrainConfig", repeats: int) -> tuple[Timings, dict[str, Any]]:
    """Seconds that a step waits for its batch when nothing else is done: decoding, resizing, laying out."""
    from vr1_jax.data.layout import PromptLayout
    from vr1_jax.data.quarantine import Quarantine
    from vr1_jax.data.tokenizer import load_tokenizer
    from vr1_jax.training import setup
    from vr1_jax.weights.checkpoint_dir import assets_directory

    tokenizer = load_tokenizer(assets_directory(Path(config.model)))
    layout = PromptLayout.of(setup.read_model_config(config), config.data.positions, config.data.spacing)
    with tempfile.TemporaryDirectory() as scratch:
        quarantine = Quarantine(Path(scratch) / "quarantine.jsonl", config.data.max_bad_share)
        pipeline = setup.make_pipeline(config, config.data.records, tokenizer, layout, quarantine)
        # Workers run ahead: only after the batches they have ready is the wait the time that one takes.
        warm_up = 2 * max(config.data.workers, 1) + 2
        with pipeline.batches(workers=config.data.workers) as batches:

            def draw(watch: Stopwatch) -> None:
                with watch("data"):
                    next(batches)

            timings, _ = repeat(draw, repeats, warm_up)
    # Workers run ahead, so that single waits are long or nothing: all of them together tell the rate.
    per_second = config.prompts_per_step * repeats / sum(timings["data"].seconds)
    return timings, {"workers": config.data.workers, "prompts_per_second": per_second}


def built_in_data(directory: Path) -> "TrainConfig":
    """The demo's kind of world, and a config that reads it."""
    from vr1_jax.config import DataConfig, RolloutConfig, TrainConfig
    from vr1_jax.data.collate import Bucket
    from vr1_jax.media.frames import FrameBudget, ImageBudget
    from vr1_jax.tools.world.write import World, write_world

    world = World(videos=64, images=16, heldout=0)
    write_world(directory / "world", world)
    pixels = world.size**2
    return TrainConfig(
        stage="rl",
        model=str(directory / "world/tiny"),
        run=str(directory / "run"),
        steps=1,
        data=DataConfig(
            records=(str(directory / "world/train.json"),),
            media_root=str(directory / "world/media"),
            video_buckets=(Bucket(4, 16, 256),),
            image_buckets=(Bucket(1, 16, 256),),
            frames=FrameBudget(max_frames=8, min_pixels=pixels, max_pixels=pixels),
            images=ImageBudget(min_pixels=pixels, max_pixels=pixels),
            workers=2,
        ),
        rollout=RolloutConfig(),
    )


def measure_load(model: Path, setting: Setting, repeats: int) -> tuple[Timings, dict[str, Any]]:
    """A model directory onto the training mesh. After the first time it comes out of the page cache."""
    from vr1_jax.weights.loading import load_model

    mesh, loaded = inputs.Meshes.of(setting).train, None

    def load(watch: Stopwatch) -> None:
        nonlocal loaded
        loaded = None  # two copies need not fit
        with watch("load"):
            loaded, _ = load_model(model, dtype=setting.dtype, mesh=mesh)
            jax.block_until_ready(loaded)

    timings, first = repeat(load, repeats)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
    return timings, {
        "bytes": size,
        "bytes_per_second": size / timings["load"].median,
        "first_seconds": first["load"].median,
    }
