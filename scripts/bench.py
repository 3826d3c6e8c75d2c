"""Measure the speed of this machine at this program's work, against what its device can do at best.

    python scripts/bench.py step    --size 3b         a T-GRPO step by phase: rollout, reward, reference, update
    python scripts/bench.py rollout --size 7b         sampling alone: reading prompts, decoding
    python scripts/bench.py compile --size 7b         compile times and memory; nothing is allocated
    python scripts/bench.py load    --model DIR       weights from disk onto the devices
    python scripts/bench.py data    --config FILE     batches out of the data pipeline

Weights are random and inputs built in. A table comes first; the last line is one JSON object with everything.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from vr1_jax.arguments import check_at_least
from vr1_jax.command_line import run_command
from vr1_jax.errors import UsageError, UserError

Work = Literal["step", "rollout", "reference", "update", "sft", "compile", "load", "data"]
# The stage whose programs are measured; of all other benchmarks, the config's own.
STAGES = {"sft": "sft", "rollout": "rl", "reference": "rl"}
OF_HOST = ("compile", "load", "data")  # which need no peaks to compare with


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Instead of those of --size or --config."""

    prompts: int | None = None  # prompts of a step, instead of those of --size or --config; so all up to --dtype
    slices: int | None = None
    patches: int | None = None
    tokens: int | None = None
    group: int | None = None
    shuffled_group: int | None = None
    answer: int | None = None
    microbatches: int | None = None
    tensor: int | None = None  # devices that share a layer in training
    rollout_tensor: int | None = None  # the same in sampling
    dtype: Literal["float32", "bfloat16"] | None = None


@dataclass(frozen=True, kw_only=True)
class Arguments(Shapes):
    what: Annotated[Work, tyro.conf.Positional]  # what to measure
    # A built-in model with its step; None: tiny.
    size: Literal["tiny", "30m", "3b", "7b", "32b", "72b"] | None = None
    config: Path | None = None  # a training config: its model and shapes
    kind: Literal["video", "image", "text"] = "video"  # of --config's steps
    model: Path | None = None  # for load: instead of random weights
    repeats: int = 5  # measured, after one to warm up

    def __post_init__(self):
        check_at_least(1, self, "repeats")
        if self.size is not None and self.config is not None:
            raise UsageError("--config is not allowed with --size")


def measure(chosen: Arguments) -> None:
    try:
        print(json.dumps(run(chosen), allow_nan=False))
    except ModuleNotFoundError as error:
        raise UserError(f"{chosen.what} with these options needs {error.name}: pip install -e .") from error


def run(chosen: Arguments) -> dict[str, Any]:
    """Measures what is asked for, prints the table, and gives everything for the last line."""
    from vr1_jax.config_files import to_json
    from vr1_jax.models.base import computing_in
    from vr1_jax.tools.benchmark import device, measure
    from vr1_jax.tools.benchmark.inputs import of_file, of_size

    shapes = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(Shapes)}
    changes = {name: value for name, value in shapes.items() if value is not None}
    if chosen.config:
        subject = of_file(chosen.config, chosen.kind, STAGES.get(chosen.what), **changes)
    else:
        subject = of_size(chosen.size or "tiny", STAGES.get(chosen.what), **changes)
    if chosen.model:
        subject = dataclasses.replace(subject, model=chosen.model)
    config, work = subject.config, subject.work
    result = {
        "benchmark": chosen.what,
        **device.describe(),
        "setting": {
            "name": subject.name,
            "model": dataclasses.asdict(subject.outline.model),
            "work": dataclasses.asdict(work),
            "config": to_json(config),
        },
    }
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    print(f"{result['devices']} x {result['device']}, {result['cores']} cores; {versions}; {result['date']}")
    print(
        f"model {subject.name} in {config.compute_dtype}: {work.prompts} prompts of {work.tokens} tokens "
        f"with {work.slices} slices of {work.patches} patches; {work.group} + {work.shuffled_group} answers of "
        f"{work.answer} tokens; {config.microbatches} microbatches"
    )
    with computing_in(config.compute_dtype):
        peaks = None if chosen.what in OF_HOST else device.measure_peaks(config.compute_dtype)
        if peaks:
            print(f"peaks, measured here: {peaks.flops / 1e12:.3g} TFLOP/s, {peaks.bytes / 1e9:.4g} GB/s")
            result["peaks"] = dataclasses.asdict(peaks)
        print(flush=True)
        if chosen.what == "compile":
            result["programs"] = measure.measure_compile(subject)
            print_programs(result["programs"])
            return result
        timings, rates = measure.BENCHMARKS[chosen.what](subject, chosen.repeats)
    floors = device.costs(subject.outline, peaks) if peaks else {}
    result["phases"] = {}
    for name, timing in timings.items():
        phase = result["phases"][name] = {"seconds": timing.to_json(), "first_seconds": timing.first}
        if cost := floors.get(name):
            phase |= {
                "flops": cost.flops,
                "bytes": cost.bytes,
                "floor_seconds": cost.floor,
                "share_of_flops_peak": cost.flops / timing.median / peaks.flops,
                "share_of_bytes_peak": cost.bytes / timing.median / peaks.bytes,
                "share_of_floor": cost.floor / timing.median,
            }
    result["rates"] = measure.token_rates(work, timings) | rates
    result["peak_memory_bytes"] = device.peak_memory()
    print_phases(result["phases"])
    print()
    for name, value in (result["rates"] | {"peak_memory_bytes": result["peak_memory_bytes"]}).items():
        shown = f"{value / 1e9:.4g} GB" if name.endswith("bytes") else f"{value:.4g}"
        print(f"{name.removesuffix('_bytes').replace('_', ' ')}: {shown}")
    return result


def print_phases(phases: dict[str, Any]) -> None:
    rows = {}
    for name, phase in phases.items():
        seconds = phase["seconds"]
        rows[name] = [seconds["median"], seconds["min"], seconds["max"], phase["first_seconds"]]
        if "flops" in phase:
            rows[name] += [phase["flops"] / 1e12, phase["bytes"] / 1e9, phase["floor_seconds"]]
            rows[name].append(phase["share_of_floor"])
    print_table("phase", ("median s", "min", "max", "first", "TFLOP", "GB", "floor s", "of floor"), rows)


def print_programs(programs: dict[str, dict[str, float]]) -> None:
    rows = {
        name: [value / 1e9 if column.endswith("bytes") else value for column, value in program.items()]
        for name, program in programs.items()
    }
    print_table("program", ("trace s", "compile s", "args GB", "temps GB", "results GB"), rows)


def print_table(name: str, titles: Sequence[str], rows: dict[str, list[float]]) -> None:
    print(f"{name:<12}" + "".join(f"{title:>12}" for title in titles))
    for row, numbers in rows.items():
        print(f"{row:<12}" + "".join(f"{number:>12.4g}" for number in numbers))


def main(arguments: list[str] | None = None) -> int:
    return run_command("bench", measure, Arguments, arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main())
