"""Plan: what a config needs on a machine, before anything is started: bytes on each device, seconds a step.

python scripts/plan.py --config configs/tgrpo_a100.py --target a100x8 [--section.field value ...]

Needs no weights, no data and no accelerator: programs are compiled from shapes. With `pip install -e '.[plan]'`
the compilers of GPUs and TPUs say what each program needs of memory and bandwidth, without a device; else the
CPU's compiler estimates the memory. Exit code 1 says that it does not fit.
"""

import logging
import sys
from dataclasses import dataclass
from typing import Literal

from vr1_jax.command_line import run_command
from vr1_jax.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    config: str  # a Python file with get_config()
    target: str = "here"  # here, a100x8, h200, v5p-16, ...; a wrong name lists all
    compiler: Literal["cpu", "cuda", "tpu"] | None = None  # of the target; its own where installed, else the CPU's


def main(arguments: list[str] | None = None) -> int:
    return run_command("plan", plan, Arguments, arguments, __doc__, overrides=True)


def plan(chosen: Arguments, overrides: list[str]) -> int:
    from vr1_jax.tools.plan.compilers import absent_devices, choose_compiler
    from vr1_jax.tools.plan.devices import find_target, this_machine

    target = devices = None
    if chosen.target != "here":
        target = find_target(chosen.target)
        devices = absent_devices(target, choose_compiler(target, chosen.compiler))
    elif chosen.compiler:
        raise UsageError("--compiler is for a --target; what is here has its own")

    logging.basicConfig(format="%(message)s")  # other packages: warnings only
    logging.getLogger("vr1_jax").setLevel(logging.INFO)

    from vr1_jax.config import load_config
    from vr1_jax.tools.plan.plan import make_plan, missing_files, planned_model
    from vr1_jax.tools.plan.report import report

    config = load_config(chosen.config, overrides)
    model, source = planned_model(config)
    target = target or this_machine()
    made = make_plan(config, model, target, devices)
    if missing := missing_files(config):
        print(f"plan: training would not start yet: {missing}", file=sys.stderr)
    print("\n".join(report(made, config, model, source, target)))
    return 0 if made.fits else 1


if __name__ == "__main__":
    sys.exit(main())
