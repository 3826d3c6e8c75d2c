"""What a run left on disk, read once. `notes` name what is damaged; a run without numbers is refused."""

import gzip
import json
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vr1_jax.errors import UserError
from vr1_jax.files import read_json
from vr1_jax.training.metrics import METRICS_FILE, read_metrics
from vr1_jax.training.rollouts import ROLLOUTS

ENVIRONMENT = "environment.json"
# What reading a file raises that was cut short, altered or written by another program.
_DAMAGE = (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError)


@dataclass
class Run:
    path: Path
    metrics: list[dict[str, Any]]
    environment: dict[str, Any]
    rollouts: dict[int, list[Path]]  # step -> its files: attempts and processes
    refused: Counter[str]  # records in quarantine by reason
    before: dict[str, float]  # what the model it started from was last measured at, on the same held-out records
    notes: list[str] = field(default_factory=list)

    def setting(self, name: str, default: Any) -> Any:
        """A field of the config by its dotted name."""
        value: Any = self.environment
        for part in ("config", *name.split(".")):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    def prompts(self, step: int) -> list[dict[str, Any]]:
        """The step's prompts with their answers, over all attempts and processes."""
        found = []
        for path in self.rollouts.get(step, []):
            try:
                with gzip.open(path, "rt", encoding="utf-8") as file:
                    content = json.load(file)
                attempt = content["attempt"]
                found += [_check(prompt) | {"attempt": attempt} for prompt in content["prompts"]]
            except _DAMAGE as error:
                self.notes.append(f"{ROLLOUTS}/{path.name} cannot be read ({type(error).__name__}: {error})")
                self.rollouts[step] = [other for other in self.rollouts[step] if other != path]
        return found


def read_run(path: Path) -> Run:
    if not path.is_dir():
        raise UserError(f"{path}: no such directory")
    if not (path / METRICS_FILE).is_file():
        below = sorted(file.parent for file in path.glob(f"*/{METRICS_FILE}"))
        hint = f"; did you mean {' or '.join(map(str, below))}?" if below else "; give the directory of a run"
        raise UserError(f"{path}: no {METRICS_FILE} in it{hint}")
    notes: list[str] = []
    environment = _environment(path / ENVIRONMENT, notes)
    rollouts: dict[int, list[Path]] = {}
    for file in sorted((path / ROLLOUTS).glob("*.json.gz")):
        if (step := file.name.partition(".")[0]).isdecimal():
            rollouts.setdefault(int(step), []).append(file)
    run = Run(path, _metrics(path), environment, rollouts, _refused(path, notes), before={}, notes=notes)
    run.before.update(_before(run))
    return run


def _metrics(path: Path) -> list[dict[str, Any]]:
    try:
        lines = read_metrics(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path / METRICS_FILE}: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise UserError(f"{path / METRICS_FILE}: line {number} has no step")
    if not lines:
        raise UserError(f"{path / METRICS_FILE}: no step is finished yet")
    return sorted(lines, key=lambda line: line["step"])


def _environment(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, UserError) as error:
        notes.append(f"{ENVIRONMENT} cannot be read ({error}): settings and media are unknown")
        return {}


def _before(run: Run) -> dict[str, float]:
    """Held-out numbers of the run that `config.model` names, if it is one that asked the same questions."""
    model = Path(str(run.setting("model", "")))
    if not (model / METRICS_FILE).is_file() or not (model / ENVIRONMENT).is_file():
        return {}
    asked = _environment(model / ENVIRONMENT, []).get("config", {}).get("data", {}).get("heldout")
    if asked != run.setting("data.heldout", None):
        return {}
    measured = [line for line in _metrics(model) if "heldout_accuracy" in line]
    return {name: value for name, value in measured[-1].items() if name.startswith("heldout_")} if measured else {}


def _refused(path: Path, notes: list[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for file in sorted(path.glob("quarantine*.jsonl")):
        try:
            lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
            counts.update(str(line["reason"]) for line in lines)
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"{file.name} cannot be read ({error})")
    return counts


def _check(prompt: dict[str, Any]) -> dict[str, Any]:
    """Refuses with KeyError, TypeError or ValueError what this program did not write."""
    for name in ("problem", "problem_type", "solution", "data_type", "file", "index", "frames"):
        prompt[name]
    groups, names = prompt["groups"], ("texts", "tokens", "logps", "stopped", "accuracy", "format")
    tables = [[*(group[name] for name in names), *group["extra"].values()] for group in groups]
    tables[0] += [prompt["rewards"], prompt["advantages"], *prompt["bonuses"].values()]
    if any(len(set(map(len, alike))) > 1 for alike in tables):
        raise ValueError("texts, tokens, scores, rewards or advantages of a group differ in number")
    pairs = (pair for group in groups for pair in zip(group["tokens"], group["logps"], strict=True))
    if any(len(tokens) != len(logps) for tokens, logps in pairs):
        raise ValueError("tokens and log-probs of an answer differ in number")
    return prompt
