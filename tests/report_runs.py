"""Run directories as training leaves them, with made-up numbers and answers, for tests of the report."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from vr1_jax.config import DataConfig, TrainConfig
from vr1_jax.config_files import to_json
from vr1_jax.data.tokenizer import ChatTokenizer
from vr1_jax.media.frames import FrameBudget, ImageBudget
from vr1_jax.rl.advantages import GRPOConfig
from vr1_jax.rl.experience import Read, judge
from vr1_jax.training.rollouts import write_rollouts
from vr1_jax.types import Completion

GROUPS = (4, 2)
WORDS = [
    "I",
    "look",
    "at",
    "the",
    "frames",
    "one",
    "by",
    "one.",
    "The",
    "light",
    "is",
    "on,",
    "then",
    "off;",
    "so",
    "it",
    "blinks",
    "a",
    "few",
    "times.",
    "Wait,",
    "again",
]


@dataclasses.dataclass
class Writer:
    """Writes a run; its answers get better, those to shuffled frames less so."""

    run: Path
    media: Path
    tokenizer: ChatTokenizer
    groups: tuple[int, int] = GROUPS
    seed: int = 0

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)
        self.run.mkdir(parents=True, exist_ok=True)

    def environment(self, steps: int, **changes) -> None:
        data = DataConfig(
            records=("train.json",),
            media_root=str(self.media),
            frames=FrameBudget(min_pixels=56 * 56, max_pixels=56 * 56),
            images=ImageBudget(56 * 56, 56 * 56),
        )
        config = TrainConfig(stage="rl", model="runs/demo/sft", run=str(self.run), steps=steps, data=data)
        config = dataclasses.replace(config, **changes)
        content = {"config": to_json(config), "versions": {"jax": "0"}, "commit": "0" * 40, "devices": ["cpu"]}
        (self.run / "environment.json").write_text(json.dumps(content))

    def metrics(self, steps: int, *, stage: str = "rl") -> None:
        with (self.run / "metrics.jsonl").open("w") as file:
            for step in range(steps):
                file.write(json.dumps({"step": step, **self._metrics(step, steps, stage)}) + "\n")

    def _metrics(self, step: int, steps: int, stage: str) -> dict:
        done, noise = step / steps, self.rng.normal(0, 0.05, 8)
        values = {
            "loss": 2 - done + noise[0],
            "grad_norm": float(np.exp(noise[1] * 10)),
            "entropy": 1 - 0.5 * done,
        }
        values |= {"seconds_data": 0.1, "seconds_update": 1 + noise[2], "host_memory_gb": 2.0, "skipped": 0}
        if stage == "rl":
            ordered, shuffled = 0.3 + 0.5 * done + noise[3], 0.3 + 0.1 * done + noise[4]
            values |= {"reward": 1 + ordered, "accuracy": ordered, "accuracy_video": ordered}
            values |= {"accuracy_shuffled": shuffled, "temporal_gap": ordered - shuffled, "temporal_signal": 0.2}
            values |= {
                "length": 40 + 5 * noise[5],
                "cut_off": 0.0,
                "kl": 0.01 * done,
                "format": 0.9,
                "seconds_rollout": 2.0,
            }
            values |= {"sampler_gap_mean": 0.002, "sampler_gap_max": 0.1, "no_signal": 0.3}
        if step % 5 == 4:
            values |= {"heldout_accuracy": 0.3 + 0.4 * done, "heldout_accuracy_error": 0.04}
        return values

    def rollouts(self, step: int, samples: list[SimpleNamespace], texts=None, *, done: float = 0.5) -> None:
        """`texts(row, group, n)` makes the answers; by default they are right ever more often."""
        texts = texts or (lambda row, group, n: self.answer(samples[row], done if group == 0 else done / 3))
        read, completions = [], []
        for group, count in enumerate(self.groups):
            answers = [[texts(row, group, n) for n in range(count)] for row in range(len(samples))]
            tokens = [
                [[*self.tokenizer.encode_text(text), self.tokenizer.end_of_turn] for text in row]
                for row in answers
            ]
            completions.append(self._completion(tokens))
            lengths = np.array([[len(t) for t in row] for row in tokens])
            read.append(Read(answers, lengths, np.ones_like(lengths, bool)))
        judged = judge(GRPOConfig.paper(), samples, *read)
        write_rollouts(self.run, (step, 0, 0), samples, judged, completions)

    def answer(self, sample: SimpleNamespace, chance: float, words: int = 30) -> str:
        thought = " ".join(self.rng.choice(WORDS, words))
        answer = sample.solution if self.rng.random() < chance else "<answer>no</answer>"
        return f"<think>{thought}</think> {answer}"

    def _completion(self, tokens: list[list[list[int]]]) -> Completion:
        longest = max(len(answer) for row in tokens for answer in row)
        shape = (len(tokens), len(tokens[0]), longest)
        ids, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
        for b, row in enumerate(tokens):
            for g, answer in enumerate(row):
                ids[b, g, : len(answer)], mask[b, g, : len(answer)] = answer, True
        logps = -self.rng.exponential(0.4, shape).astype(np.float32) * (self.rng.random(shape) < 0.4)
        stopped = ids.sum(-1) % 7 != 0  # some reached the limit
        return Completion(*map(jnp.asarray, (ids, mask, logps, stopped)))


def sample(number: int, path: str, **changes) -> SimpleNamespace:
    """A row of a batch, as the pipeline hands it on."""
    fields = {
        "file": "train.json",
        "index": number,
        "problem": f"How many times does the light blink in clip {number}?",
        "problem_type": "numerical",
        "options": [],
        "solution": f"<answer>{number}</answer>",
        "data_type": "video",
        "path": path,
        "is_video": True,
        "frames": 8,
        "seconds_per_slice": 1.0,
        "shuffled_by": "frames",
        "order": [3, 1, 0, 2, 7, 5, 6, 4],
    }
    return SimpleNamespace(**fields | changes)
