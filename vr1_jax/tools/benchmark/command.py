"""One benchmark from its command-line arguments: a table to read, and everything as JSON for the last line."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vr1_jax.config_files import to_json
from vr1_jax.models.base import computing_in
from vr1_jax.tools.benchmark import sizes
from vr1_jax.tools.benchmark.device import Cost, Peaks, costs, describe, measure_peaks, peak_memory
from vr1_jax.tools.benchmark.measure import BENCHMARKS
from vr1_jax.tools.benchmark.sizes import Subject
from vr1_jax.tools.benchmark.timing import Timing

# Options that change a subject's shapes, its mesh or its dtype.
CHANGES = (
    *("prompts", "slices", "patches", "tokens", "group", "shuffled_group", "answer"),
    *("microbatches", "tensor", "rollout_tensor", "dtype"),
)
# The stage whose programs are measured; of all other benchmarks, the config's own.
_STAGES = {"sft": "sft", "rollout": "rl", "reference": "rl"}
_OF_HOST = ("compile", "load", "data")  # which need no peaks to compare with


def run(chosen: Any) -> dict[str, Any]:
    """Measures what scripts/bench.py is asked for, prints the table, and gives everything for the last line."""
    changes = {name: value for name in CHANGES if (value := getattr(chosen, name)) is not None}
    stage = _STAGES.get(chosen.what)
    if chosen.config:
        subject = sizes.of_file(chosen.config, chosen.kind, stage, **changes)
    else:
        subject = sizes.of_size(chosen.size or "tiny", stage, **changes)
    if chosen.model:
        subject = dataclasses.replace(subject, model=chosen.model)
    config, work = subject.config, subject.work
    result = {
        "benchmark": chosen.what,
        **describe(),
        "setting": {
            "name": subject.name,
            "model": dataclasses.asdict(subject.outline.model),
            "work": dataclasses.asdict(work),
            "config": to_json(config),
        },
    }
    with computing_in(config.compute_dtype):
        peaks = None if chosen.what in _OF_HOST else measure_peaks(config.compute_dtype)
        _print_heading(result, subject, peaks)
        measured = BENCHMARKS[chosen.what](subject, chosen.repeats)
    if measured.programs:
        _print_programs(measured.programs)
        return result | {"programs": measured.programs}
    floors: dict[str, Cost] = {}
    if peaks:
        result["peaks"] = dataclasses.asdict(peaks)
        floors = costs(subject.outline, peaks)
    result["phases"] = {name: _phase(t, floors.get(name), peaks) for name, t in measured.timings.items()}
    result["rates"] = measured.rates
    result["peak_memory_bytes"] = peak_memory()
    _print_phases(result["phases"])
    _print_rates(measured.rates | {"peak_memory_bytes": result["peak_memory_bytes"]})
    return result


def _phase(timing: Timing, cost: Cost | None, peaks: Peaks | None) -> dict[str, Any]:
    found = {"seconds": timing.as_json(), "first_seconds": timing.first}
    if cost is None or peaks is None:
        return found
    return found | {
        "flops": cost.flops,
        "bytes": cost.bytes,
        "floor_seconds": cost.floor,
        "share_of_flops_peak": cost.flops / timing.median / peaks.flops,
        "share_of_bytes_peak": cost.bytes / timing.median / peaks.bytes,
        "share_of_floor": cost.floor / timing.median,
    }


def _print_heading(machine: dict[str, Any], subject: Subject, peaks: Peaks | None) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['devices']} x {machine['device']}, {machine['cores']} cores; {versions}; {machine['date']}")
    work = subject.work
    print(
        f"model {subject.name} in {subject.config.compute_dtype}: {work.prompts} prompts of {work.tokens} tokens "
        f"with {work.slices} slices of {work.patches} patches; {work.group} + {work.shuffled_group} answers of "
        f"{work.answer} tokens; {subject.config.microbatches} microbatches"
    )
    if peaks:
        print(f"peaks, measured here: {peaks.flops / 1e12:.3g} TFLOP/s, {peaks.bytes / 1e9:.4g} GB/s")
    print(flush=True)


def _print_phases(results: dict[str, Any]) -> None:
    titles = ("median s", "min", "max", "first", "TFLOP", "GB", "floor s", "of floor")
    rows = {}
    for name, phase in results.items():
        seconds = phase["seconds"]
        rows[name] = [seconds["median"], seconds["min"], seconds["max"], phase["first_seconds"]]
        if "flops" in phase:
            rows[name] += [phase["flops"] / 1e12, phase["bytes"] / 1e9, phase["floor_seconds"]]
            rows[name].append(phase["share_of_floor"])
    _print_table("phase", titles, rows)


def _print_programs(results: dict[str, Any]) -> None:
    titles = ("trace s", "compile s", "args GB", "temps GB", "results GB")
    rows = {
        name: [value / 1e9 if column.endswith("bytes") else value for column, value in program.items()]
        for name, program in results.items()
    }
    _print_table("program", titles, rows)


def _print_table(name: str, titles: Sequence[str], rows: dict[str, list[float]]) -> None:
    print(f"{name:<12}" + "".join(f"{title:>12}" for title in titles))
    for row, numbers in rows.items():
        print(f"{row:<12}" + "".join(f"{number:>12.4g}" for number in numbers))


def _print_rates(rates: dict[str, float]) -> None:
    print()
    for name, value in rates.items():
        unit = f"{value / 1e9:.4g} GB" if name.endswith("bytes") else f"{value:.4g}"
        print(f"{name.removesuffix('_bytes').replace('_', ' ')}: {unit}")
