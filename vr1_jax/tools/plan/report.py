"""A plan as lines to read."""

from collections.abc import Iterable

from vr1_jax.config import TrainConfig
from vr1_jax.models import flops
from vr1_jax.models.config import ModelConfig
from vr1_jax.tools.plan.devices import Target
from vr1_jax.tools.plan.plan import REACHED_BANDWIDTH, REACHED_FLOPS, USABLE_MEMORY, Plan


def report(plan: Plan, config: TrainConfig, model: ModelConfig, source: str, target: Target) -> Iterable[str]:
    memory = plan.memory
    count = flops.count_parameters(model).total
    size = f"{count / 1e9:.3g} billion parameters" if count > 1e9 else f"{count / 1e6:.3g} million parameters"
    yield f"{config.stage} of {size} ({source}) on {target.count} x {target.device.name}"
    axes = ", ".join(f"{name} {size}" for name, size in plan.meshes.train.shape.items())
    yield f"mesh: {axes}; sampling: tensor {plan.meshes.rollout.shape['tensor']}"
    yield ""
    unit, name = (1e9, "GB") if plan.peak.together > 1e9 else (1e6, "MB")
    yield f"{name} on each device"
    for row, size in plan.parts.items():
        if size:
            yield f"  {row:<52} {_number(size, unit)}"
    yield ""
    columns = ("held", "given", "temp", "new", "all")
    yield f"{'phase':<10} {'data':<52} {' '.join(f'{c:>7}' for c in columns)}"
    for need in plan.needs:
        sizes = (need.held, *need.sizes, need.together)
        yield f"{need.phase:<10} {need.bucket:<52} {' '.join(_number(size, unit) for size in sizes)}"
    if plan.compiler == "cpu" and target.name != "here":
        yield "Temporaries by the CPU's compiler: an estimate, the target's own may need more or less."
    yield from _asked(plan)
    yield from _times(plan)
    peak, left = plan.peak, memory * USABLE_MEMORY - plan.peak.together
    verdict = (
        f"fits, {left / 1e9:.1f} GB to spare" if plan.fits else f"does not fit, {-left / 1e9:.1f} GB too much"
    )
    yield ""
    yield (
        f"peak {peak.together / 1e9:.1f} GB in {peak.phase}{f' ({peak.bucket})' if peak.bucket else ''}; usable "
        f"{USABLE_MEMORY:.0%} of {memory / 1e9:.1f} GB: {verdict}"
    )


def _times(plan: Plan) -> Iterable[str]:
    for bucket, phases in plan.seconds.items():
        parts = ", ".join(f"{name} {seconds:.3g}" for name, seconds in phases.items())
        yield f"seconds a step, derived, {bucket}: {sum(phases.values()):.3g} ({parts})"
    if plan.seconds:
        yield (
            f"  assuming {REACHED_FLOPS:.0%} of peak FLOPs, {REACHED_BANDWIDTH:.0%} of bandwidth while decoding, "
            "answers of full length; without data, rewards and moving weights"
        )


def _asked(plan: Plan) -> Iterable[str]:
    """What each program asks of a device."""
    worked = [need for need in plan.needs if need.work is not None]
    if not worked:
        return
    yield ""
    yield f"of each device, by its compiler {'seconds':>61} {'GB':>9} {'TFLOP':>7} {'copied':>7} {'sent':>6}"
    for need in worked:
        work = need.work
        sent = sum(work.collectives.values())
        yield (
            f"{need.phase:<10} {need.bucket:<52} {work.seconds:>29.3g} {work.bytes / 1e9:9.0f} "
            f"{work.flops / 1e12:7.1f} {sum(work.copies.values()) / 1e9:7.1f} {sent / 1e9:6.1f}"
        )
        if sent:
            kinds = ", ".join(f"{kind} {size / 1e9:.1f}" for kind, size in work.collectives.items())
            yield f"{'':<11}{kinds} GB; {work.synchronous / 1e9:.1f} GB beside which nothing is computed"
    yield "  seconds at full speed, each instruction by bytes or products; without what is sent between devices"


def _number(size: int, unit: float) -> str:
    return f"{size / unit:7.2f}"
