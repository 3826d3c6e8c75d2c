"""Ask a model a question, about a video, an image or neither.

    python scripts/generate.py --model DIR --video clip.mp4 --question "What happens after the ball falls?"

The question goes into the user's turn as it is; with --problem-type it gets the words that training puts around
it, which ask for reasoning in <think> and the answer in <answer> tags. Answers are drawn as in training,
temperature 1 and top-p 0.95, unless told otherwise. Text appears as it is written on a terminal. Exit code: 0
done, 1 failed, 2 wrong usage.
"""

import argparse
import dataclasses
import errno
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vr1_jax import command_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vr1_jax.data.collate import EncodedPrompt
    from vr1_jax.data.prompts import PromptStyle
    from vr1_jax.data.tokenizer import ChatTokenizer
    from vr1_jax.evaluation.asking import Answer, Answers
    from vr1_jax.evaluation.chat_model import ChatModel
    from vr1_jax.evaluation.prompting import View
    from vr1_jax.sampling.settings import SamplingConfig

PROBLEM_TYPES = ("multiple choice", "numerical", "OCR", "free-form", "regression")
TOKENS_PER_PIECE = 4
MOST_ANSWERS, MOST_TOKENS = 1024, 32_768


def messages(chosen: argparse.Namespace, kind: str, style: "PromptStyle") -> list[dict]:
    """The conversation; with a problem type as training words it."""
    from vr1_jax.data.prompts import prompt_messages
    from vr1_jax.data.records import Sample

    question = chosen.question
    if chosen.problem_type is not None:
        options = tuple(chosen.options or ())
        sample = Sample(0, None, question, kind, chosen.problem_type, options, answer="", solution="", path=None)
        return prompt_messages(sample, style)
    media = [] if kind == "text" else [{"type": "image" if kind == "image" else "video"}]
    return [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]


def look(chosen: argparse.Namespace, kind: str, chat: "ChatModel") -> "View | None":
    if kind == "text":
        return None
    from vr1_jax.evaluation.prompting import view_media
    from vr1_jax.media.reader import MediaReader

    with MediaReader(unit=chat.geometry.unit) as reader:
        asked = chat.presentation
        return view_media(reader, kind, chosen.image or chosen.video, chat.geometry, asked.frames, asked.images)


def ask(chosen: argparse.Namespace) -> None:
    command_line.keep_compiled_programs()
    config = sampling_config(chosen)
    for path in (chosen.model, chosen.video, chosen.image):
        if path is not None and not path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such file or directory", str(path))
    from vr1_jax.evaluation.asking import answers
    from vr1_jax.evaluation.chat_model import load_chat_model
    from vr1_jax.evaluation.prompting import encode_messages

    kind = kind_of(chosen)
    chat = load_chat_model(chosen.model, presentation=command_line.asked(chosen))
    view = look(chosen, kind, chat)
    prompt = encode_messages(
        messages(chosen, kind, chat.presentation.style), chat.tokenizer, view, chat.geometry.merge
    )
    streams = sys.stdout.isatty() and not chosen.json
    started = time.perf_counter()
    states = answers(
        chat, prompt, config, n=chosen.n, seed=chosen.seed, every=TOKENS_PER_PIECE if streams else None
    )
    if streams:
        for piece in text_pieces(states, chat.tokenizer, chosen.n):
            print(piece, end="", flush=True)
        return
    *_, state = states
    found = state.finish(chat.tokenizer)
    if chosen.json:
        seconds = time.perf_counter() - started
        media = None if view is None else describe(chosen.image or chosen.video, view, chat.geometry.patch)
        print(json.dumps(report(chosen, config, prompt, media, found, seconds), ensure_ascii=False))
    else:
        print_answers(found)


def text_pieces(states: "Iterator[Answers]", tokenizer: "ChatTokenizer", n: int) -> "Iterator[str]":
    """What `print_answers` prints, as it is written: all answers grow at once, one is shown after the other."""
    from vr1_jax.evaluation.asking import TextStream

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


def report(
    chosen: argparse.Namespace,
    config: "SamplingConfig",
    prompt: "EncodedPrompt",
    media: dict | None,
    found: "list[Answer]",
    seconds: float,
) -> dict[str, Any]:
    return {
        "model": str(chosen.model),
        "question": chosen.question,
        "media": media,
        "prompt_tokens": len(prompt.tokens),
        "sampling": dataclasses.asdict(config),
        "seed": chosen.seed,
        "seconds": round(seconds, 3),
        "completions": [dataclasses.asdict(answer) for answer in found],
    }


def describe(path: Path, view: "View", patch: int) -> dict[str, Any]:
    """What the model saw."""
    return {"path": str(path)} | view.seen(patch)


def kind_of(chosen: argparse.Namespace) -> str:
    if chosen.image is not None:
        return "image"
    if chosen.video is None:
        return "text"
    return "frames" if chosen.video.is_dir() else "video"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    command_line.add_model(parser)
    media = parser.add_mutually_exclusive_group()
    media.add_argument("--video", type=Path, metavar="FILE", help="or a folder of frames, three for each second")
    media.add_argument("--image", type=Path, metavar="FILE")
    parser.add_argument("--question", type=text, required=True, metavar="TEXT")
    parser.add_argument(
        "--problem-type", choices=PROBLEM_TYPES, help="ask as training does; default: the question as it is"
    )
    parser.add_argument(
        "--options", type=text, nargs="+", metavar="TEXT", help='of a multiple choice, as "A. red" "B. blue"'
    )
    parser.add_argument("--max-new-tokens", type=int, default=768, metavar="N", help="default 768")
    parser.add_argument("--temperature", type=finite, metavar="X", help="default 1; 0 is --greedy")
    parser.add_argument("--top-p", type=finite, metavar="X", help="default 0.95")
    parser.add_argument("--greedy", action="store_true", help="always the most likely token")
    parser.add_argument(
        "--n", type=command_line.positive, default=1, metavar="N", help="answers to draw, default 1"
    )
    command_line.add_asking(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same answers; default 0")
    parser.add_argument("--json", action="store_true", help="one JSON object: text, tokens, log-probs, frames")
    chosen = parser.parse_args(arguments)
    if chosen.greedy and (chosen.temperature is not None or chosen.top_p is not None):
        parser.error("--greedy takes the most likely token; it excludes --temperature and --top-p")
    for name, most in (("n", MOST_ANSWERS), ("max_new_tokens", MOST_TOKENS)):
        if (value := getattr(chosen, name)) > most:
            parser.error(
                f"--{name.replace('_', '-')} is {value}; all is drawn at once, so it must be at most {most}"
            )
    if not 0 <= chosen.seed < 2**63:
        parser.error(f"--seed is {chosen.seed}; it must be at least 0 and below 2^63")
    if (chosen.problem_type == "multiple choice") != bool(chosen.options):
        parser.error('--problem-type "multiple choice" and --options need each other')
    return chosen


def text(argument: str) -> str:
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("is not valid UTF-8") from None
    if not argument.strip():
        raise argparse.ArgumentTypeError("is empty")
    return argument


def finite(argument: str) -> float:
    if not math.isfinite(number := float(argument)):
        raise argparse.ArgumentTypeError(f"{argument} is not a finite number")
    return number


def sampling_config(chosen: argparse.Namespace) -> "SamplingConfig":
    from vr1_jax.sampling.settings import SamplingConfig

    given = {"temperature": 0.0 if chosen.greedy else chosen.temperature, "top_p": chosen.top_p}
    return SamplingConfig(chosen.max_new_tokens, **{name: x for name, x in given.items() if x is not None})


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)
    return command_line.run("generate", lambda: ask(chosen))


if __name__ == "__main__":
    sys.exit(main())
