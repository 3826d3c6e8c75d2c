"""Train: T-GRPO, GRPO or SFT, as the config says. The same command resumes a run that was stopped.

python scripts/train.py --config configs/tgrpo_a100.py [--plan] [--steps 100] [--grpo.beta 0.02] ...
"""

import argparse
import gc
import logging
import sys
import traceback

from vr1_jax import command_line

log = logging.getLogger("vr1_jax")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="Every field of the config can follow as --section.field VALUE; --config FILE --help lists them.",
        add_help=False,
    )
    parser.add_argument("--config", metavar="FILE", help="a Python file with get_config()")
    parser.add_argument("--plan", action="store_true", help="only say what it needs on this machine, and stop")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0: joins several by hand")
    parser.add_argument("--processes", type=int, metavar="N")
    parser.add_argument("--process", type=int, metavar="I")
    parser.add_argument("-h", "--help", action="store_true")
    chosen, overrides = parser.parse_known_args(arguments)
    if chosen.config is None:
        parser.print_help()
        return 0 if chosen.help else 2
    if chosen.plan:
        import plan  # the script beside this one

        return plan.main(["--config", chosen.config, *overrides])
    by_hand = (chosen.coordinator, chosen.processes, chosen.process)
    if None in by_hand and any(value is not None for value in by_hand):
        parser.error("--coordinator, --processes and --process go together")
    command_line.keep_compiled_programs()
    logging.basicConfig(format="%(message)s")  # other packages: warnings only
    log.setLevel(logging.INFO)

    def work() -> None:
        from vr1_jax.config import load_config
        from vr1_jax.tools.presets import list_differences
        from vr1_jax.training import processes
        from vr1_jax.training.loop import train

        config = load_config(chosen.config, [*overrides, *(["--help"] if chosen.help else [])])
        log.info("settings that are not those of the presets:")
        for line in list_differences(config):
            log.info("  %s", line)
        processes.join(*by_hand)
        train(config)

    try:
        code = command_line.run("train", work, interrupted="the same command goes on from the last checkpoint")
    except Exception:  # printed here, as the end may come at once
        traceback.print_exc()
        code = 1
    gc.collect()  # an error's frames hold the batch it happened with, whose shared memory would count as lost
    if code:
        from vr1_jax.training import processes

        processes.end_if_several(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
