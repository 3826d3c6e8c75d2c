"""What a benchmark says: a table to read, and everything as one JSON object on the last line."""

import json
from typing import Any

from vr1_jax.tools.benchmark.device import Peaks
from vr1_jax.tools.benchmark.floors import Cost
from vr1_jax.tools.benchmark.phases import Timings
from vr1_jax.tools.benchmark.sizes import Setting


def phase_results(timings: Timings, first: Timings, costs: dict[str, Cost], peaks: Peaks) -> dict[str, Any]:
    results = {}
    for name, timing in timings.items():
        results[name] = {"seconds": timing.as_json()}
        if name in first:
            results[name]["first_seconds"] = first[name].median
        if cost := costs.get(name):
            results[name] |= {
                "flops": cost.flops,
                "bytes": cost.bytes,
                "floor_seconds": cost.floor,
                "share_of_flops_peak": cost.flops / timing.median / peaks.flops,
                "share_of_bytes_peak": cost.bytes / timing.median / peaks.bytes,
                "share_of_floor": cost.floor / timing.median,
            }
    return results


def print_heading(machine: dict[str, Any], setting: Setting, peaks: Peaks | None) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['devices']} x {machine['device']}, {machine['cores']} cores; {versions}; {machine['date']}")
    work = setting.work
    print(
        f"model {setting.name} in {setting.dtype}: {work.prompts} prompts of {work.tokens} tokens with "
        f"{work.slices} slices of {work.patches} patches; {work.group} + {work.shuffled_group} answers of "
        f"{work.answer} tokens; {setting.microbatches} microbatches"
    )
    if peaks:
        print(f"peaks, measured here: {peaks.flops / 1e12:.3g} TFLOP/s, {peaks.bytes / 1e9:.4g} GB/s")
    print(flush=True)


def print_phases(results: dict[str, Any]) -> None:
    titles = ("median s", "min", "max", "first", "TFLOP", "GB", "floor s", "of floor")
    print(f"{'phase':<12}" + "".join(f"{title:>10}" for title in titles))
    for name, phase in results.items():
        seconds = phase["seconds"]
        line = f"{name:<12}{seconds['median']:>10.4g}{seconds['min']:>10.4g}{seconds['max']:>10.4g}"
        line += f"{phase['first_seconds']:>10.4g}" if "first_seconds" in phase else " " * 10
        if "flops" in phase:
            line += f"{phase['flops'] / 1e12:>10.4g}{phase['bytes'] / 1e9:>10.4g}{phase['floor_seconds']:>10.4g}"
            line += f"{phase['share_of_floor']:>10.1%}"
        print(line)


def print_programs(results: dict[str, Any]) -> None:
    columns = ("trace_seconds", "compile_seconds", "argument_bytes", "temporary_bytes", "output_bytes")
    titles = ("trace s", "compile s", "arguments GB", "temporary GB", "results GB")
    print(f"{'program':<12}" + "".join(f"{title:>14}" for title in titles))
    for name, program in results.items():
        values = (program[c] / 1e9 if c.endswith("bytes") else program[c] for c in columns)
        print(f"{name:<12}" + "".join(f"{value:>14.4g}" for value in values))


def print_rates(rates: dict[str, float]) -> None:
    print()
    for name, value in rates.items():
        unit = f"{value / 1e9:.4g} GB" if name.endswith("bytes") else f"{value:.4g}"
        print(f"{name.removesuffix('_bytes').replace('_', ' ')}: {unit}")


def print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, allow_nan=False))
