"""One benchmark from its command-line arguments: what `scripts/bench.py` runs."""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vr1_jax.errors import UsageError, UserError
from vr1_jax.tools.benchmark import output, phases
from vr1_jax.tools.benchmark.compiling import measure_compile
from vr1_jax.tools.benchmark.device import describe, measure_peaks, peak_memory
from vr1_jax.tools.benchmark.floors import costs
from vr1_jax.tools.benchmark.sizes import SETTINGS, Setting, changed, of_config

if TYPE_CHECKING:
    from vr1_jax.config import TrainConfig

MEASURED: dict[str, Callable[[Setting, int], tuple[phases.Timings, phases.Timings]]] = {
    "step": phases.measure_step,
    "rollout": phases.measure_rollout,
    "reference": phases.measure_reference,
    "update": phases.measure_update,
    "sft": phases.measure_sft,
}
SHAPES = ("prompts", "slices", "patches", "tokens", "group", "shuffled_group", "answer")
FIELDS = (*SHAPES, "microbatches", "tensor", "rollout_tensor", "dtype")


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the table, and gives everything for the last line."""
    config, setting = _of_config(chosen) if chosen.config else (None, SETTINGS[chosen.size or "tiny"])
    setting = changed(setting, {name: value for name in FIELDS if (value := getattr(chosen, name)) is not None})
    _check(setting)
    result = {"benchmark": chosen.what, **describe(), "setting": dataclasses.asdict(setting)}
    if chosen.what == "compile":
        output.print_heading(result, setting, None)
        result["programs"] = measure_compile(setting)
        output.print_programs(result["programs"])
        return result
    if chosen.what in MEASURED:
        peaks = measure_peaks(setting.dtype)
        result["peaks"] = dataclasses.asdict(peaks)
        output.print_heading(result, setting, peaks)
        timings, first = MEASURED[chosen.what](setting, chosen.repeats)
        result["phases"] = output.phase_results(timings, first, costs(setting, peaks), peaks)
        result["rates"] = _rates(setting, timings)
    else:
        output.print_heading(result, setting, None)
        measure = _load if chosen.what == "load" else _data
        timings, result["rates"] = measure(chosen, config, setting)
        result["phases"] = {name: {"seconds": timing.as_json()} for name, timing in timings.items()}
    result["peak_memory_bytes"] = peak_memory()
    output.print_phases(result["phases"])
    output.print_rates(result["rates"] | {"peak_memory_bytes": result["peak_memory_bytes"]})
    return result


def _of_config(chosen: argparse.Namespace) -> "tuple[TrainConfig, Setting]":
    from vr1_jax.config import load_config
    from vr1_jax.errors import UsageError

    try:
        config = load_config(chosen.config)
        return config, of_config(config, chosen.kind)
    except UsageError as error:
        raise UsageError(str(error)) from None


def _check(setting: Setting) -> None:
    work = setting.work
    smallest = {"prompts": 1, "slices": 1, "patches": 4, "tokens": 4, "group": 2, "shuffled_group": 0, "answer": 2}
    for name, least in smallest.items():
        if getattr(work, name) < least:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} {getattr(work, name)}: must be at least {least}")
    if setting.microbatches < 1 or work.prompts % setting.microbatches:
        raise UsageError(f"--microbatches {setting.microbatches} does not divide --prompts {work.prompts}")


def _rates(setting: Setting, timings: phases.Timings) -> dict[str, float]:
    """Tokens are those of every answer at its full length."""
    work = setting.work
    sampled, trained = work.rows * work.answer, work.prompts * work.group * work.answer
    tokens = {"rollout": sampled, "decode": sampled - work.rows, "reference": trained, "update": trained}
    tokens["sft"] = work.prompts * work.answer
    rates = {
        f"{name}_tokens_per_second": tokens[name] / timing.median
        for name, timing in timings.items()
        if name in tokens
    }
    if "update" in timings and "rollout" in timings:
        rates["step_seconds"] = sum(timing.median for timing in timings.values())
    return rates


def _load(chosen: argparse.Namespace, config: "TrainConfig | None", setting: Setting):
    from vr1_jax.tools.benchmark.host import measure_load
    from vr1_jax.tools.benchmark.random_model import write_random_model

    if model := chosen.model or (config and Path(config.model)):
        try:
            return measure_load(model, setting, chosen.repeats)
        except UserError as error:
            raise UsageError(str(error)) from None
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        write_random_model(model, setting.model, np.dtype(setting.dtype))
        return measure_load(model, setting, chosen.repeats)


def _data(chosen: argparse.Namespace, config: "TrainConfig | None", setting: Setting):
    from vr1_jax.tools.benchmark.host import built_in_data, measure_data

    if config:
        return measure_data(config, chosen.repeats)
    with tempfile.TemporaryDirectory() as scratch:
        return measure_data(built_in_data(Path(scratch)), chosen.repeats)
