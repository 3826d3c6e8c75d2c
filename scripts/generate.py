"""Ask a model a question, about a video, an image or neither.

    python scripts/generate.py --model DIR --video clip.mp4 --question "What happens after the ball falls?"

The question goes into the user's turn as it is; with --problem-type it gets the words that training puts around
it, which ask for reasoning in <think> and the answer in <answer> tags. Answers are drawn as in training,
temperature 1 and top-p 0.95, unless told otherwise. Text appears as it is written on a terminal. Exit code: 0
done, 1 failed, 2 wrong usage.
"""

import dataclasses
import errno
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vr1_jax.arguments import Asking, check_at_least
from vr1_jax.command_line import keep_compiled_programs, run_command
from vr1_jax.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vr1_jax.data.prompts import PromptStyle
    from vr1_jax.data.tokenizer import ChatTokenizer
    from vr1_jax.evaluation.chat import Answer, Partial
    from vr1_jax.sampling.settings import SamplingConfig

TOKENS_PER_PIECE = 4
MOST_ANSWERS, MOST_TOKENS = 1024, 32_768  # all is drawn at once


@dataclass(frozen=True, kw_only=True)
class Arguments(Asking):
    model: Path  # Hugging Face, converted or run directory
    video: Path | None = None  # a file, or a folder of frames, three for each second
    image: Path | None = None  # a file
    question: str
    # Ask as training does. None: the question as it is.
    problem_type: Literal["multiple choice", "numerical", "OCR", "free-form", "regression"] | None = None
    options: tuple[str, ...] = ()  # of a multiple choice, as "A. red" "B. blue"
    max_new_tokens: int = 768  # most tokens of an answer
    temperature: float | None = None  # None: 1; 0 is --greedy
    top_p: float | None = None  # None: 0.95
    greedy: bool = False  # always the most likely token
    n: int = 1  # answers to draw
    seed: int = 0  # same seed, same answers
    json: bool = False  # one JSON object: text, tokens, log-probs, frames

    def __post_init__(self):
        super().__post_init__()
        if self.video is not None and self.image is not None:
            raise UsageError("--image is not allowed with --video")
        for name, texts in (("question", (self.question,)), ("options", self.options)):
            for text in texts:
                check_text(f"--{name}", text)
        if self.greedy and (self.temperature is not None or self.top_p is not None):
            raise UsageError("--greedy takes the most likely token; it excludes --temperature and --top-p")
        for name in ("temperature", "top_p"):
            if not math.isfinite(getattr(self, name) or 0):
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}, not a finite number")
        check_at_least(1, self, "n")
        for name, most in (("n", MOST_ANSWERS), ("max_new_tokens", MOST_TOKENS)):
            if (value := getattr(self, name)) > most:
                raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be at most {most}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed is {self.seed}; it must be at least 0 and below 2^63")
        if (self.problem_type == "multiple choice") != bool(self.options):
            raise UsageError('--problem-type "multiple choice" and --options need each other')


def check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} is not valid UTF-8") from None
    if not text.strip():
        raise UsageError(f"{name} is empty")


def messages(chosen: Arguments, kind: str, style: "PromptStyle") -> list[dict]:
    """The conversation; with a problem type as training words it."""
    from vr1_jax.data.prompts import prompt_messages
    from vr1_jax.data.records import Sample

    question = chosen.question
    if chosen.problem_type is not None:
        options = chosen.options
        sample = Sample(0, None, question, kind, chosen.problem_type, options, answer="", solution="", path=None)
        return prompt_messages(sample, style)
    media = [] if kind == "text" else [{"type": "image" if kind == "image" else "video"}]
    return [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]


def ask(chosen: Arguments) -> None:
    keep_compiled_programs()
    config = sampling_config(chosen)
    for path in (chosen.model, chosen.video, chosen.image):
        if path is not None and not path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such file or directory", str(path))

    from vr1_jax.evaluation.chat import load_chat_model, stream_answers
    from vr1_jax.media.reader import MediaReader

    kind = kind_of(chosen)
    chat = load_chat_model(chosen.model, presentation=chosen.presentation(chosen.model))
    view, encoder = None, chat.encoder
    if kind != "text":
        with MediaReader(unit=encoder.geometry.unit) as reader:
            view = encoder.view(kind, chosen.image or chosen.video, reader)
    prompt = encoder.encode(messages(chosen, kind, encoder.style), view)
    streams = sys.stdout.isatty() and not chosen.json
    started = time.perf_counter()
    states = stream_answers(
        chat, prompt, config, n=chosen.n, seed=chosen.seed, every=TOKENS_PER_PIECE if streams else None
    )
    if streams:
        for piece in text_pieces(states, chat.tokenizer, chosen.n):
            print(piece, end="", flush=True)
        return
    *_, state = states
    found = state.finish(chat.tokenizer)
    if not chosen.json:
        return print_answers(found)
    media = None
    if view is not None:
        media = {"path": str(chosen.image or chosen.video)} | view.describe(encoder.geometry.patch)
    report = {
        "model": str(chosen.model),
        "question": chosen.question,
        "media": media,
        "prompt_tokens": len(prompt.tokens),
        "sampling": dataclasses.asdict(config),
        "seed": chosen.seed,
        "seconds": round(time.perf_counter() - started, 3),
        "completions": [dataclasses.asdict(answer) for answer in found],
    }
    print(json.dumps(report, ensure_ascii=False))


def text_pieces(states: "Iterator[Partial]", tokenizer: "ChatTokenizer", n: int) -> "Iterator[str]":
    """What `print_answers` prints, as it is written: all answers grow at once, one is shown after the other."""
    from vr1_jax.evaluation.chat import TextStream

    row, stream = 0, TextStream(tokenizer)
    yield title(row, n)
    for state in states:
        while state.stopped[row] and row + 1 < n:
            yield f"{stream.update(state.tokens[row], last=True)}\n{title(row + 1, n)}"
            row, stream = row + 1, TextStream(tokenizer)
        yield stream.update(state.tokens[row])
    yield stream.update(state.tokens[row], last=True) + "\n"
    for later in range(row + 1, n):
        yield f"{title(later, n)}{tokenizer.decode(state.tokens[later])}\n"


def title(row: int, n: int) -> str:
    return f"[{row + 1}]\n" if n > 1 else ""


def print_answers(answers: "list[Answer]") -> None:
    for row, answer in enumerate(answers):
        print(f"{title(row, len(answers))}{answer.text}")


def kind_of(chosen: Arguments) -> str:
    if chosen.image is not None:
        return "image"
    if chosen.video is None:
        return "text"
    return "frames" if chosen.video.is_dir() else "video"


def sampling_config(chosen: Arguments) -> "SamplingConfig":
    from vr1_jax.sampling.settings import SamplingConfig

    given = {"temperature": 0.0 if chosen.greedy else chosen.temperature, "top_p": chosen.top_p}
    return SamplingConfig(chosen.max_new_tokens, **{name: x for name, x in given.items() if x is not None})


def main(arguments: list[str] | None = None) -> int:
    return run_command("generate", ask, Arguments, arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main())
