"""What a run needs before it is started: bytes on each device by phase, and seconds a step.

Every program is compiled from abstract shapes, so nothing but the config is needed, for devices that are here or
not. Temporaries are those of the target's own compiler where it is installed, else the CPU's estimate.
"""

import dataclasses
import hashlib
import itertools
import logging
from dataclasses import dataclass

import jax

from vr1_jax.config import TrainConfig
from vr1_jax.data.collate import Bucket
from vr1_jax.errors import UsageError
from vr1_jax.models import flops
from vr1_jax.models.base import computing_in
from vr1_jax.models.config import ModelConfig
from vr1_jax.models.qwen25vl import PUBLISHED, size_in_name
from vr1_jax.sampling.generate import cache_sizes
from vr1_jax.tools.plan.compilers import compile_for
from vr1_jax.tools.plan.devices import Target
from vr1_jax.tools.plan.hlo import Module, Work
from vr1_jax.tools.plan.programs import Outline, Program, Sizes, bytes_per_device, programs
from vr1_jax.training import setup
from vr1_jax.training.metrics import trained_parts
from vr1_jax.training.optimizer import trained

log = logging.getLogger("vr1_jax")

# Shares of a device's figures that a run is taken to reach. Not measured: change them to what you see.
USABLE_MEMORY = 0.92  # the driver, libraries and fragments take the rest
REACHED_FLOPS = 0.4  # where many tokens are computed at once, recomputation counted
REACHED_BANDWIDTH = 0.6  # where answers are decoded token by token

_DEPTHS = 2, 3  # layers, of programs that are compiled in place of deep ones


@dataclass(frozen=True)
class Need:
    """One program at work, bytes on each device."""

    phase: str
    bucket: str
    held: int  # what else lives meanwhile
    sizes: Sizes
    work: Work | None  # where the target's own compiler says it

    @property
    def together(self) -> int:
        return self.held + sum(self.sizes)


@dataclass(frozen=True)
class Plan:
    parts: dict[str, int]  # bytes on each device of what a run keeps, and of what temporaries are made of
    needs: list[Need]
    seconds: dict[str, dict[str, float]]  # of each bucket's step, by phase; empty where the device is not known
    memory: float  # of a device
    meshes: setup.Meshes
    compiler: str

    @property
    def peak(self) -> Need:
        return max(self.needs, key=lambda need: need.together)

    @property
    def fits(self) -> bool:
        return self.peak.together <= self.memory * USABLE_MEMORY


def planned_model(config: TrainConfig) -> tuple[ModelConfig, str]:
    """The model in the config's directory, or the published one of the size that its name speaks of."""
    try:
        return setup.read_model_config(config), config.model
    except UsageError as error:
        size = size_in_name(config.model)
        if size is None:
            raise UsageError(
                f"{error}, and its name tells none of the sizes {', '.join(PUBLISHED)}; give --model a directory"
            ) from None
        return PUBLISHED[size], f"published {size}"


def make_plan(
    config: TrainConfig,
    model: ModelConfig,
    target: Target,
    devices: list[jax.Device] | None = None,
    seen: dict[bytes, tuple[Sizes, Work | None]] | None = None,
) -> Plan:
    """For `devices`, which may be absent; None for those here.

    `seen` carries what is known of programs from plan to plan, by what their text hashes to: configs share them.
    """
    meshes = setup.make_meshes(config, devices)
    setup.check_layout(config, model, meshes)
    outline = Outline(config, model, meshes)
    needs, seen = [], {} if seen is None else seen
    for program in programs(outline):
        log.info("compiling: %s %s", program.phase, program.bucket)
        needs.append(_need(program, outline, target, seen))
    seconds = {}
    if target.device.flops:
        seconds = {f"{kind}: {b}": _seconds(outline, kind, b, target) for kind, b in outline.buckets}
    return Plan(_parts(outline), needs, seconds, target.device.memory, meshes, outline.platform)


def missing_files(config: TrainConfig) -> str | None:
    """What training would refuse to start without, of the data: planning only tells."""
    try:
        setup.check_files(config)
    except UsageError as error:
        return str(error)
    return None


def _parts(outline: Outline) -> dict[str, int]:
    config, model, dtype = outline.config, outline.state.model, outline.config.compute_dtype
    masters, copied = bytes_per_device(model), config.stage == "rl" or outline.evaluates
    copied, adapts = copied and not outline.samples_in_place, bool(config.lora.rank)
    parts = {
        f"parameters, {dtype}, and adapters, fp32" if adapts else "master parameters, fp32": masters,
        f"optimizer moments, {config.optimizer.moments}": bytes_per_device(outline.state) - masters,
        "gradients, fp32 (part of the update's temporaries)": bytes_per_device(trained(model, config.optimizer)),
        f"reference, {dtype}": bytes_per_device(outline.reference) * (outline.has_reference and not adapts),
        f"copy that samples, {dtype}": bytes_per_device(outline.policy) * copied,
    }
    if config.stage == "rl":
        prompts, answers = zip(*(_caches(outline, kind, bucket) for kind, bucket in outline.buckets), strict=True)
        parts["cache of prompts (part of the rollout's temporaries)"] = max(prompts)
        parts["cache of answers (part of the rollout's temporaries)"] = max(answers)
    return parts


def _caches(outline: Outline, kind: str, bucket: Bucket) -> tuple[int, int]:
    """Of prompts and of answers. Inside a program nothing names their place: rows and kv heads are split."""
    mesh, heads = outline.meshes.rollout.shape, outline.model.text.kv_heads
    split = mesh["data"] * mesh["fsdp"] * (mesh["tensor"] if heads % mesh["tensor"] == 0 else 1)
    state = outline.sampling_state(kind, bucket)
    prompts = [(cache.keys, cache.values) for cache in state.prompts]
    return bytes_per_device(prompts) // split, bytes_per_device(state.caches) // split


def _need(
    program: Program, outline: Outline, target: Target, seen: dict[bytes, tuple[Sizes, Work | None]]
) -> Need:
    unrolled = program.phase in ("rollout", "evaluate")
    if outline.platform == "cpu" and unrolled and outline.model.text.layers > _DEPTHS[-1]:
        known = _extrapolated(program, outline, target, seen), None
    else:
        known = _compiled(program, outline, target, seen)
    return Need(program.phase, program.bucket, _held(program.phase, outline), *known)


def _compiled(
    program: Program, outline: Outline, target: Target, seen: dict[bytes, tuple[Sizes, Work | None]]
) -> tuple[Sizes, Work | None]:
    with computing_in(outline.config.compute_dtype):
        lowered = program.lower()
    key = hashlib.sha256(lowered.as_text().encode()).digest()
    if key not in seen:
        compiled, work = compile_for(lowered, outline.platform), None
        if outline.platform != "cpu" and target.device.flops:
            text, device = compiled.as_text(), target.device
            work = Module(text).work(device.flops, device.bandwidth, _decoded(outline.config))
        seen[key] = Sizes.of(compiled, outline.platform), work
    return seen[key]


def _extrapolated(
    program: Program, outline: Outline, target: Target, seen: dict[bytes, tuple[Sizes, Work | None]]
) -> Sizes:
    """Of a program whose layers are unrolled, from two of few layers: the CPU's compiler takes minutes for all.

    In fp32, and halved for bf16, of which that compiler would keep fp32 copies.
    """
    sizes = []
    for layers in _DEPTHS:
        text = dataclasses.replace(outline.model.text, layers=layers)
        config = dataclasses.replace(outline.config, compute_dtype="float32")
        shallow = Outline(config, dataclasses.replace(outline.model, text=text), outline.meshes)
        same = (p for p in programs(shallow) if (p.phase, p.bucket) == (program.phase, program.bucket))
        sizes.append(_compiled(next(same), shallow, target, seen)[0])
    more, width = outline.model.text.layers - _DEPTHS[-1], 2 if outline.config.compute_dtype == "bfloat16" else 1
    return Sizes(*((deep + more * (deep - flat)) // width for flat, deep in zip(*sizes, strict=True)))


def _decoded(config: TrainConfig) -> list[int]:
    """Tokens that each of the sampler's loops writes: answers are taken to be of full length."""
    ends = [0, *cache_sizes(config.rollout.sampling.capacity)]
    return [end - first for first, end in itertools.pairwise(ends)]


def _held(phase: str, outline: Outline) -> int:
    """What lives beside a program's own arguments, as the loop holds it."""
    state, copy = bytes_per_device(outline.state), bytes_per_device(outline.reference)
    if outline.config.lora.rank:  # the reference is a part of the state, and so may be what samples
        of_state = phase == "reference" or (phase != "copy" and outline.samples_in_place)
        return 0 if phase == "update" else state - copy * of_state
    reference = copy if outline.has_reference else 0
    if phase in ("copy", "rollout"):
        return state + reference
    if phase == "reference":
        return state + (reference if outline.scores_policy else 0)
    if phase == "loss":
        return state + bytes_per_device(outline.policy)
    if phase == "evaluate":  # SFT also scores the right answers, in the precision of training
        return state + reference + (copy if outline.config.stage == "sft" else 0)
    return reference


def _seconds(outline: Outline, kind: str, bucket: Bucket, target: Target) -> dict[str, float]:
    """By FLOPs and bytes over what the devices are assumed to reach."""
    config, model, work = outline.config, outline.model, outline.workload(kind, bucket)
    compute = target.count * target.device.flops * REACHED_FLOPS
    stream = target.device.bandwidth * REACHED_BANDWIDTH
    optimizer = flops.optimizer_bytes(model) / (target.count * stream)
    optimizer *= not config.lora.rank
    update = flops.update(model, work, remat=True, **trained_parts(config)) / compute * config.epochs_per_batch
    update += optimizer * config.updates_per_step
    if config.stage == "sft":
        return {"update": update}
    read = flops.rollout(model, dataclasses.replace(work, answer=1)) / compute
    copies = max(target.count // config.mesh.rollout_tensor, 1)
    share = dataclasses.replace(work, prompts=-(-work.prompts // copies))
    width = 2 if config.compute_dtype == "bfloat16" else 4
    moved = flops.rollout_bytes(model, share, bytes_per_value=width) / config.mesh.rollout_tensor
    arithmetic = flops.rollout(model, work) / compute - read
    scored = outline.has_reference + outline.scores_policy
    return {
        "rollout": read + max(moved / stream, arithmetic),
        "reference": scored * flops.reference(model, work) / compute,
        "update": update,
    }
