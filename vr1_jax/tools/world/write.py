"""The built-in world on disk: real mp4 and png files, records in the training format, small models.

    python -m vr1_jax.tools.world.write --out world --videos 200 --images 100

writes, the same for the same arguments,

    world/train.json, heldout.json       questions with reasoning (`process`) and answers, evenly spread
    world/misleading.json                only with --static-shortcut: held-out questions whose cue lies
    world/media/...                      the media root of all of them
    world/tiny, world/small              model directories of 1 and 30 million parameters, without weights

Videos are `SLICES` states of one second each, two frames a second. --static-shortcut Q frames every video
that needs order in a colour that stands for an answer: the right one with probability Q, else a wrong one.
A model that follows the colour scores Q on held-out questions and nothing on those whose `data_source` says
that they are misleading.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.random import Generator, default_rng

from vr1_jax.command_line import run_command
from vr1_jax.errors import UsageError
from vr1_jax.files import whole_directory
from vr1_jax.tools.world.model import SMALL, TINY, hf_config, write_model_directory
from vr1_jax.tools.world.scenes import FRAMES_PER_SLICE, ORDERED, STILL, Scene, Task

SPLITS = ("train", "heldout", "misleading")
LETTERS = "ABCD"
# Every third video shows a still, so that "it is a video" does not mean "order matters".
VIDEO_TASKS = tuple(
    task for n, task in enumerate(ORDERED) for task in ([task, STILL[n // 2]] if n % 2 else [task])
)


@dataclass(frozen=True)
class World:
    """What to write. The same world is the same bytes of JSON and PNG and the same pixels of video."""

    seed: int = 0
    videos: int = 200  # training records on videos
    images: int = 100  # training records on images
    heldout: int = 60  # questions of each split that is not for training, two thirds of them on videos
    size: int = 56  # pixels on a side, a multiple of 28
    static_shortcut: float | None = None  # how often a frame's colour is right
    tasks: tuple[str, ...] = ()  # names of the tasks to use; empty uses all

    def __post_init__(self):
        known = [task.name for task in ORDERED + STILL]
        if unknown := sorted(set(self.tasks) - set(known)):
            raise UsageError(f"no task is called {', '.join(unknown)}; there are {', '.join(known)}")
        if self.tasks and self.images and not _chosen(STILL, self):
            raise UsageError("images were asked for, but none of the chosen tasks shows a still")
        if self.size < 56 or self.size % 28:
            raise UsageError(f"size must be a multiple of 28 from 56 on, got {self.size}")
        if min(self.videos, self.images, self.heldout) < 0:
            raise UsageError("videos, images and heldout count records and cannot be negative")
        if self.static_shortcut is not None and not 0 <= self.static_shortcut <= 1:
            raise UsageError(f"static_shortcut is a probability, got {self.static_shortcut}")


def write_world(out: Path, world: World, *, force: bool = False) -> dict[str, int]:
    """Returns how many records each split has."""
    if out.exists() and not force:
        raise UsageError(f"{out} exists; --force replaces it")
    counts = {}
    with whole_directory(out) as aside:
        for split in SPLITS if world.static_shortcut is not None else SPLITS[:2]:
            records = [_write_record(aside / "media", world, *item) for item in _plan(world, split)]
            text = json.dumps(records, indent=1, ensure_ascii=False)
            (aside / f"{split}.json").write_text(text + "\n", encoding="utf-8")
            counts[split] = len(records)
        for name, model in (("tiny", TINY), ("small", SMALL)):
            write_model_directory(aside / name, hf_config(model))
    return counts


def _plan(world: World, split: str) -> Iterator[tuple[str, int, str, Task, int]]:
    """(split, record number, data_type, task, the task's turn), images and videos mixed evenly."""
    videos, images = world.videos, world.images
    if split != "train":
        videos, images = world.heldout - world.heldout // 3, world.heldout // 3
    turns: Counter[str] = Counter()
    for number in range(videos + images):
        # Bresenham: after n records, the nearest whole number to n * videos / total are videos.
        is_video = (number + 1) * videos // (videos + images) > number * videos // (videos + images)
        data_type, tasks = ("video", VIDEO_TASKS) if is_video else ("image", STILL)
        tasks = _chosen(tasks, world)
        turn, place = divmod(turns[data_type], len(tasks))
        yield split, number, data_type, tasks[place], turn
        turns[data_type] += 1


def _chosen(tasks: tuple[Task, ...], world: World) -> tuple[Task, ...]:
    return tuple(task for task in tasks if not world.tasks or task.name in world.tasks)


def _write_record(
    media: Path, world: World, split: str, number: int, data_type: str, task: Task, turn: int
) -> dict:
    chance = _chance(world, split, "record", number)
    right, letter = _even_choice(world, split, data_type, task, turn)
    scene = task.paint(right, world.size, *chance.spawn(2))
    misleads = False
    if world.static_shortcut is not None and task in ORDERED:
        wrong = (right + 1 + int(chance.integers(task.choices - 1))) % task.choices
        misleads = chance.random() >= (0.0 if split == "misleading" else world.static_shortcut)
        scene = scene.with_cue(wrong if misleads else right)
    path = f"{split}/{number:06d}.{'mp4' if data_type == 'video' else 'png'}"
    (media / path).parent.mkdir(parents=True, exist_ok=True)
    if data_type == "video":
        _write_video(media / path, scene.frames)
    else:
        scene.states[0].save(media / path)
    options, answer = [], scene.answers[right]
    if task.problem_type == "multiple choice":
        options, answer = _options(scene, chance, letter), LETTERS[letter]
    return {
        "problem_id": number,
        "problem": scene.question,
        "data_type": data_type,
        "problem_type": task.problem_type,
        "options": options,
        "process": f"<think>{scene.reasoning}</think>",
        "solution": f"<answer>{answer}</answer>",
        "path": f"./{path}",
        "data_source": f"{'misleading' if misleads else 'built-in'}/{task.name}",
    }


def _chance(world: World, *names: str | int) -> Generator:
    """A source of chance that depends on nothing but the seed and what it is for."""
    return default_rng([world.seed, *"/".join(map(str, names)).encode()])


def _even_choice(world: World, split: str, data_type: str, task: Task, turn: int) -> tuple[int, int]:
    """Right answer and its letter: every pair once in each block of turns, shuffled."""
    pairs = task.choices * task.choices
    order = _chance(world, split, data_type, task.name, turn // pairs).permutation(pairs)
    return divmod(int(order[turn % pairs]), task.choices)


def _options(scene: Scene, chance: Generator, letter: int) -> list[str]:
    """Lettered, with the right one at `letter`, the others in any order."""
    others = [answer for n, answer in enumerate(scene.answers) if n != scene.right]
    texts = [str(text) for text in chance.permutation(others)]
    texts.insert(letter, scene.answers[scene.right])
    return [f"{LETTERS[n]}. {text}" for n, text in enumerate(texts)]


def _write_video(path: Path, frames: list[np.ndarray]) -> None:
    """H.264, every frame coded by itself at one quality, so that equal frames decode to equal pixels."""
    options = {"preset": "ultrafast", "qp": "10", "g": "1", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SLICE, options=options)
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@dataclass(frozen=True, kw_only=True)
class Arguments(World):
    out: Path  # directory to create
    force: bool = False  # replace --out


def main(arguments: list[str] | None = None) -> int:
    return run_command("world", _write, Arguments, arguments, __doc__)


def _write(chosen: Arguments) -> None:
    counts = write_world(chosen.out, chosen, force=chosen.force)
    print(f"{chosen.out}: " + ", ".join(f"{count} {split}" for split, count in counts.items()) + " records")


if __name__ == "__main__":
    sys.exit(main())
