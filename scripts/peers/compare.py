"""Our T-GRPO step beside plain transformers and torch: the same weights, videos and lengths, on this machine.

    python scripts/peers/compare.py --side 252 --repeats 7

Each program runs in a process of its own, on the same two cores, and they take turns, one step each. Before
that all compute loss and gradient of the same given answers, which must agree. A turn in which something else
ran on the cores is dropped; where no turn was quiet, all count and `quiet` says 0. A table comes first; the last
line is one JSON object with everything.

    ours                      the program as it trains
    upstream                  as Video-R1's trainer does it: prompt and video repeated for each of the G answers
    upstream_checkpointing    the same with gradient checkpointing
    lean                      video seen once, logits of the answers only: what upstream could save easily
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

PROGRAMS = {
    "ours": ("our_step.py",),
    "upstream": ("torch_step.py",),
    "upstream_checkpointing": ("torch_step.py", "--checkpointing"),
    "lean": ("torch_step.py", "--form", "lean"),
}
TEXT_TOKENS = 183  # of the question, beside the video's
CORES = 2
# Cores that others may keep busy in a turn, on average; more, and the turn is dropped.
OTHER_LOAD = 0.1
# Largest relative difference of loss, gradient norm and log-probs between programs, all in fp32.
AGREEMENT = 2e-3


class Program:
    """One of the programs, waiting in its own process on the cores that all share."""

    def __init__(self, name: str, directory: Path, cores: list[int]):
        self.name, self.cores, self.turns = name, cores, []
        threads = {"OMP_NUM_THREADS": str(len(cores)), "JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
        script, *options = PROGRAMS[name]
        self._process = subprocess.Popen(
            [sys.executable, HERE / script, directory, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads},
        )

    def ask(self, command: str) -> dict[str, Any]:
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"compare: {self.name} ended with status {self._process.wait()}")
        return json.loads(line)

    def take_turn(self) -> None:
        before = busy_seconds(self.cores)
        turn = self.ask("step")
        others = busy_seconds(self.cores) - before - turn["processor_seconds"]
        self.turns.append({**turn, "other_cores": max(others, 0.0) / turn["seconds"]})

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def summary(self) -> dict[str, Any]:
        """Medians over turns without other load; over all turns where there was none."""
        quiet = [turn for turn in self.turns if turn["other_cores"] <= OTHER_LOAD]
        used = quiet or self.turns
        phases = {name: statistics.median(turn["phases"][name] for turn in used) for name in used[0]["phases"]}
        seconds = [turn["seconds"] for turn in used]
        return {
            "seconds": statistics.median(seconds),
            "min": min(seconds),
            "max": max(seconds),
            "phases": phases,
            "peak_memory": max(turn["peak_memory"] for turn in self.turns),
            "quiet_turns": len(quiet),
            "turns": self.turns,
        }


def busy_seconds(cores: list[int]) -> float:
    """Processor time spent on these cores so far, by anybody, other machines on the same host included."""
    names, total = {f"cpu{core}" for core in cores}, 0
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            name, *fields = line.split()
            if name in names:
                user, nice, system, _, _, irq, soft, steal = map(int, fields[:8])
                total += user + nice + system + irq + soft + steal
    return total / os.sysconf("SC_CLK_TCK")


def prepare(directory: Path, side: int, new_tokens: int) -> dict[str, int]:
    """Two random models, and one prompt with given answers to it."""
    from vr1_jax.tools.benchmark import inputs
    from vr1_jax.tools.world.model import SMALL, write_random_model

    _, work, _ = inputs.SIZES["30m"]
    patches = (side // SMALL.vision.patch) ** 2
    visual = work.slices * patches // SMALL.vision.merge**2
    work = dataclasses.replace(work, patches=patches, tokens=visual + TEXT_TOKENS, answer=new_tokens)
    for seed, name in enumerate(("model", "reference")):
        write_random_model(directory / name, SMALL, np.dtype(np.float32), seed)
    ordered, shuffled = (inputs.prompt_arrays(SMALL, work, reverse=reverse) for reverse in (False, True))
    np.savez(
        directory / "inputs.npz",
        tokens=ordered["tokens"][0],
        positions=ordered["positions"][0],
        ordered=ordered["patches"][0],
        shuffled=shuffled["patches"][0],
        grid=np.array([work.slices, *inputs.grid_of(patches, SMALL.vision.merge)]),
        video_token=SMALL.video_token,
        answers=inputs.answer_tokens(SMALL, work)[0],
        advantages=np.resize(np.array([1.0, -0.5, 0.25], np.float32), work.group),
        shuffled_group=work.shuffled_group,
    )
    return {"side": side, **dataclasses.asdict(work)}


def check_agreement(results: dict[str, dict[str, float]]) -> None:
    for quantity in ("reference_logp", "loss", "grad_norm"):
        values = {name: result[quantity] for name, result in results.items()}
        print(f"{quantity:<16}" + "".join(f"{name} {value:.6g}   " for name, value in values.items()))
        largest = max(map(abs, values.values()))
        if max(values.values()) - min(values.values()) > AGREEMENT * largest:
            raise SystemExit(
                f"compare: the programs do not compute the same {quantity}; timing them means nothing"
            )


def print_table(results: dict[str, dict[str, Any]]) -> None:
    titles = ("seconds", "min", "max", "rollout", "reference", "update", "memory GB", "quiet", "of ours")
    print(f"\n{'':<24}" + "".join(f"{title:>11}" for title in titles))
    for name, result in results.items():
        phases = (result["phases"][phase] for phase in ("rollout", "reference", "update"))
        numbers = (result["seconds"], result["min"], result["max"], *phases, result["peak_memory"] / 1e9)
        ratio = f"{result['seconds'] / results['ours']['seconds']:.2f} x" if "ours" in results else ""
        quiet = f"{result['quiet_turns']}/{len(result['turns'])}"
        print(f"{name:<24}" + "".join(f"{number:>11.3g}" for number in numbers) + f"{quiet:>11}{ratio:>11}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=252, help="pixels of the frames' sides, a multiple of 28")
    parser.add_argument("--new-tokens", type=int, default=64, help="length of every answer")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each program, after one to warm up")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    chosen = parser.parse_args()
    if chosen.side < 28 or chosen.side % 28:
        parser.error("--side must be a multiple of 28")
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)  # which the programs inherit
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        result: dict[str, Any] = {"work": prepare(directory, chosen.side, chosen.new_tokens)}
        programs = []
        for name in chosen.programs:  # one after the other: a start is as much work as a step
            programs.append(Program(name, directory, cores))
            stack.callback(programs[-1].close)
            programs[-1].answer()
        result["check"] = {program.name: program.ask("check") for program in programs}
        check_agreement(result["check"])
        for program in programs:
            program.ask("step")
        for repeat in range(chosen.repeats):
            for program in programs[repeat % len(programs) :] + programs[: repeat % len(programs)]:
                program.take_turn()
    result["programs"] = {program.name: program.summary() for program in programs}
    print_table(result["programs"])
    from vr1_jax.tools.benchmark.device import describe

    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    print(json.dumps({"benchmark": "peers", **describe(), "peer_versions": versions, **result}))


if __name__ == "__main__":
    main()
