"""Train: T-GRPO, GRPO or SFT, as the config says. The same command resumes a run that was stopped.

python scripts/train.py --config configs/tgrpo_a100.py [--plan] [--steps 100] [--grpo.beta 0.02] ...

Every field of the config can follow as --section.field VALUE; --config FILE --help lists them, and so does
docs/configuration.md.
"""

import gc
import logging
import sys
import traceback
from dataclasses import dataclass

from vr1_jax import command_line
from vr1_jax.errors import UsageError

log = logging.getLogger("vr1_jax")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    config: str  # a Python file with get_config()
    plan: bool = False  # only say what it needs on this machine, and stop
    coordinator: str | None = None  # host:port of process 0: joins several by hand
    processes: int | None = None  # how many there are
    process: int | None = None  # the number of this one, from 0

    def __post_init__(self):
        by_hand = {value is None for value in (self.coordinator, self.processes, self.process)}
        if len(by_hand) > 1:
            raise UsageError("--coordinator, --processes and --process go together")


def work(chosen: Arguments, overrides: list[str]) -> int | None:
    if chosen.plan:
        import plan  # the script beside this one

        return plan.main(["--config", chosen.config, *overrides])
    command_line.keep_compiled_programs()
    logging.basicConfig(format="%(message)s")  # other packages: warnings only
    log.setLevel(logging.INFO)
    from vr1_jax.config import load_config
    from vr1_jax.tools.presets import list_differences
    from vr1_jax.training import processes
    from vr1_jax.training.loop import train

    config = load_config(chosen.config, overrides)
    log.info("settings that are not those of the presets:")
    for line in list_differences(config):
        log.info("  %s", line)
    processes.join(chosen.coordinator, chosen.processes, chosen.process)
    train(config)


def main(arguments: list[str] | None = None) -> int:
    goes_on = "the same command goes on from the last checkpoint"
    try:
        code = command_line.run_command(
            "train", work, Arguments, arguments, __doc__, interrupted=goes_on, overrides=True
        )
    except Exception:  # printed here, as the end may come at once
        traceback.print_exc()
        code = 1
    gc.collect()  # an error's frames hold the batch it happened with, whose shared memory would count as lost
    if code and (processes := sys.modules.get("vr1_jax.training.processes")):
        processes.end_if_several(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
