"""Everything before the first step: meshes, checks that fail early, weights, data, the run directory."""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from vr1_jax.config import DataConfig, TrainConfig
from vr1_jax.config_files import to_json
from vr1_jax.data.collate import Bucket, PromptLayout
from vr1_jax.data.encode import Encoder
from vr1_jax.data.pipeline import Batching, Pipeline
from vr1_jax.data.prompts import Presentation
from vr1_jax.data.quarantine import Quarantine
from vr1_jax.data.record_file import RecordFile
from vr1_jax.data.sources import Kind, Selection, Source
from vr1_jax.data.tokenizer import ChatTokenizer, load_tokenizer
from vr1_jax.errors import UsageError
from vr1_jax.media.cache import CachedMedia
from vr1_jax.media.frames import VisualGeometry
from vr1_jax.media.reader import MediaReader
from vr1_jax.models.adapters import adapted_rules
from vr1_jax.models.base import Model
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.families import abstract_model, family_of
from vr1_jax.sampling.sampler import Sampler
from vr1_jax.sharding import TRAIN_RULES, make_mesh, shardings
from vr1_jax.training import processes, record_sizes, run_directory
from vr1_jax.training.bucket_check import check_buckets
from vr1_jax.training.checkpoint import Checkpoints
from vr1_jax.training.optimizer import with_frozen
from vr1_jax.training.state import abstract_state, adapted_model, fresh_state
from vr1_jax.types import TrainState
from vr1_jax.weights.checkpoint_dir import HF, assets_directory
from vr1_jax.weights.hf_directory import parse_config, read_hf_config
from vr1_jax.weights.loading import load_model, open_source

# Fields of the config that a resumed run may change: they do not change what is learned, or, as the directory of
# the model it began with, are checked by content, or say how much further it goes.
HARMLESS = (
    "run",
    "model",
    "steps",
    "optimizer.total_steps",
    "mesh",
    "checkpoint",
    "watch",
    "data.workers",
    "data.cache",
    "data.heldout",
    "data.media_root",
    "data.max_bad_share",
    "stop_after_skips",
)


@dataclass(frozen=True)
class Meshes:
    train: Mesh
    rollout: Mesh  # the same devices, split for sampling


@dataclass(frozen=True)
class Program:
    """What the loop works with. Only `state` changes, and only in the loop's hands."""

    meshes: Meshes
    tokenizer: ChatTokenizer
    pipeline: Pipeline
    heldout: Pipeline | None
    heldout_refused: Quarantine
    quarantine: Quarantine
    position: Mapping[str, Any] | None  # of the data, where a resumed run goes on
    state: TrainState
    reference: Model | None
    sampler: Sampler


def make_meshes(config: TrainConfig, devices: list[jax.Device] | None = None) -> Meshes:
    mesh = config.mesh
    train = make_mesh(mesh.data, mesh.fsdp, mesh.tensor, devices=devices)
    if mesh.rollout_tensor == mesh.tensor:
        return Meshes(train, train)
    make_mesh(1, -1, mesh.rollout_tensor, devices=devices)  # refuses what does not fit, by name
    # The same order of devices as in training: a process's rows are then the same rows in both.
    devices = train.devices.reshape(1, -1, mesh.rollout_tensor)
    return Meshes(train, Mesh(devices, train.axis_names, axis_types=(AxisType.Auto,) * 3))


def check(config: TrainConfig, meshes: Meshes) -> None:
    """Refuse what cannot work before anything large is read, naming the field."""
    model = read_model_config(config)
    check_layout(config, model, meshes)
    check_files(config)
    if not (Path(config.run) / HF).is_dir():  # or a model that cannot be used would stay in the run directory
        load_tokenizer(assets_directory(Path(config.model))).check_fits(model)
        if not config.from_scratch:
            open_source(Path(config.model))


def check_layout(config: TrainConfig, model: ModelConfig, meshes: Meshes) -> None:
    """The model, its adapters, the batch and the meshes against each other."""
    if config.lora.rank:
        adapted_rules(family_of(model), model, config.lora)
    at_once = config.prompts_per_step // (config.updates_per_batch * config.microbatches)
    whole = config.prompts_per_step  # sampling takes the batch in one piece
    for name, mesh, prompts in (("mesh", meshes.train, at_once), ("mesh.rollout_tensor", meshes.rollout, whole)):
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        if prompts % shards:
            raise UsageError(
                f"prompts_per_step {config.prompts_per_step}: {name} splits the {prompts} prompts computed at "
                f"once over {shards} groups of devices, which does not divide"
            )
        if shards % jax.process_count():
            raise UsageError(
                f"{name} splits the batch over {shards} groups of devices, which {jax.process_count()} processes "
                "cannot share: a group of tensor-parallel devices must lie within one process"
            )
        shardings(abstract_model(model), TRAIN_RULES, mesh)  # refuses heads that do not divide
    check_buckets(config.data, model.vision)


def check_files(config: TrainConfig) -> None:
    data = config.data
    for name in ("records", "heldout"):
        for path in getattr(data, name):
            if not Path(path).is_file():
                raise UsageError(f"data.{name}: {path}: no such file")
    if data.sizes is not None and not Path(data.sizes).is_file():
        raise UsageError(f"data.sizes: {data.sizes}: no such file; scripts/choose_buckets.py writes it")
    if data.cache is not None and not Path(data.cache).is_dir():
        raise UsageError(f"data.cache: {data.cache}: no such directory; scripts/cache_media.py writes it")
    if not Path(data.media_root).is_dir():
        raise UsageError(f"data.media_root: {data.media_root}: no such directory")
    if Path(config.run).resolve() == Path(config.model).resolve():
        raise UsageError(f"run: {config.run} is the model's own directory; name another")
    if config.watch.evaluate_every and not data.heldout:
        raise UsageError("watch.evaluate_every asks for evaluations; data.heldout names no records for them")
    packages = {"tensorboard": "tensorboardX", "wandb_project": "wandb"}
    for name, package in packages.items():
        if getattr(config.watch, name) and importlib.util.find_spec(package) is None:
            raise UsageError(f"watch.{name} needs the package {package}: pip install {package}")


def read_model_config(config: TrainConfig) -> ModelConfig:
    assets = assets_directory(Path(config.model))
    if not (assets / "config.json").is_file():
        raise UsageError(f"model: {config.model}: no config.json there")
    return parse_config(read_hf_config(assets), assets)


def presentation(config: TrainConfig) -> Presentation:
    data = config.data
    return Presentation(data.prompt, config.stage, data.frames, data.images, data.positions, data.spacing)


@contextlib.contextmanager
def open_run(run: Path, config: TrainConfig) -> Iterator[Checkpoints]:
    """Create the run directory, or recognise its own run in it; nobody else can run it meanwhile."""
    with contextlib.ExitStack() as stack:
        with processes.agreed():  # made by the first process, read by all
            if jax.process_index() == 0:
                stack.enter_context(run_directory.locked(run))
                run_directory.begin(run, Path(config.model), presentation(config), config.lora)
        yield stack.enter_context(Checkpoints(run, config.checkpoint, to_json(config), harmless=HARMLESS))


def load(config: TrainConfig, meshes: Meshes, checkpoints: Checkpoints) -> Program:
    """The data, which may refuse the config; then weights, of the newest checkpoint or of the model."""
    run, mesh = Path(config.run), meshes.train
    model_config, tokenizer = parse_config(read_hf_config(run / HF), run / HF), load_tokenizer(run / HF)
    layout = PromptLayout.of(model_config, config.data.positions, config.data.spacing)
    process = {"process": jax.process_index(), "processes": jax.process_count()}
    quarantine = Quarantine(run / "quarantine.jsonl", config.data.max_bad_share, **process)
    pipeline = make_pipeline(config, config.data.records, tokenizer, layout, quarantine)
    heldout, heldout_refused = None, Quarantine(run / "heldout_refused.jsonl", max_share=1.0, **process)
    if config.data.heldout:
        heldout = make_pipeline(config, config.data.heldout, tokenizer, layout, heldout_refused, training=False)
    with jax.set_mesh(mesh):
        like = abstract_state(config, model_config, mesh)
        found = checkpoints.restore(like)
        begun = None
        with_reference = config.stage == "rl" and config.grpo.beta > 0
        if with_reference or config.lora.rank or (found is None and not config.from_scratch):
            begun = run_directory.origin_step(run, Path(config.model))
        if found is None:
            state, position = fresh_state(config, model_config, like, mesh, begun), None
        else:
            state, saved = found
            position = saved["data"]
            if config.lora.rank:
                model = with_frozen(state.model, adapted_model(config, mesh, begun))
                state = dataclasses.replace(state, model=model)
        reference = None
        if with_reference and not config.lora.rank:
            reference, _ = load_model(config.model, dtype=jnp.dtype(config.compute_dtype), mesh=mesh, step=begun)
    if jax.process_index() == 0:  # only now: a run that is refused keeps its record
        run_directory.record_start(config, mesh, int(state.step) // config.updates_per_step)
    quarantine.start(pipeline.unreadable, len(pipeline.records))
    if heldout is not None:
        heldout_refused.start(heldout.unreadable, len(heldout.records))
    return Program(
        meshes=meshes,
        tokenizer=tokenizer,
        pipeline=pipeline,
        heldout=heldout,
        heldout_refused=heldout_refused,
        quarantine=quarantine,
        position=position,
        state=state,
        reference=reference,
        sampler=Sampler(
            tokenizer.stop_tokens,
            tokenizer.pad_token,
            jax.random.fold_in(jax.random.key(config.seed), 1),
            meshes.rollout,
        ),
    )


def make_pipeline(
    config: TrainConfig,
    records: tuple[str, ...],
    tokenizer: ChatTokenizer,
    layout: PromptLayout,
    quarantine: Quarantine,
    *,
    training: bool = True,
) -> Pipeline:
    data, rl = config.data, config.stage == "rl"
    geometry = VisualGeometry(merge=layout.merge)
    reader = MediaReader(unit=geometry.unit)
    buckets = {"video": data.video_buckets, "image": data.image_buckets, "text": data.text_buckets}
    if not training:  # sizes are known of the training records only: one bucket for all
        buckets = {kind: (union(choice),) if choice else () for kind, choice in buckets.items()}
    sources = [Source(RecordFile(path), Path(data.media_root)) for path in records]
    supervised = None if rl else data.loss_on
    encoder = Encoder(tokenizer, data.frames, data.images, geometry, presentation(config).style, supervised)
    return Pipeline(
        sources,
        encoder,
        layout,
        CachedMedia(data.cache, reader) if data.cache else reader,
        Batching(
            rows=config.prompts_per_step,
            buckets={kind: choice for kind, choice in buckets.items() if choice},
            seed=config.seed,
            weights=_weights(data) if training else None,
            selection=Selection(data.source_weights, data.pass_rate) if training else Selection(),
            shuffle=data.shuffle if (rl or not training) and config.rollout.shuffled_group else None,
            answer_tokens=None if rl else data.answer_tokens,
        ),
        sizes=_sizes(config, sources, encoder) if training else None,
        known=quarantine.known,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )


def _sizes(config: TrainConfig, sources: list[Source], encoder: Encoder) -> np.ndarray | None:
    """Where some kind has several buckets: of the file named, or read from headers and kept in the run."""
    data = config.data
    if data.sizes is not None:
        return np.load(data.sizes)
    if max(len(choice) for choice in (data.video_buckets, data.image_buckets, data.text_buckets)) < 2:
        return None
    with processes.agreed():  # read by the first process, for all
        if jax.process_index() == 0:
            record_sizes.keep(Path(config.run), sources, encoder)
    return record_sizes.kept(Path(config.run))


def union(buckets: Sequence[Bucket]) -> Bucket:
    return Bucket(*(max(getattr(b, name) for b in buckets) for name in ("slices", "patches", "tokens")))


def _weights(data: DataConfig) -> dict[Kind, float] | None:
    share = data.image_share
    return None if share is None else {"image": share, "video": 1.0 - share}
