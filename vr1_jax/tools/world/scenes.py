"""The built-in world's scenes: coloured shapes on plain ground, one question each, reasoning from the facts.

A task paints a scene from its answer and two sources of chance: `look` (colours, where things are) and
`order` (when). For the tasks of `ORDERED`, changing the answer only reorders the same frames: whoever sees
them unordered can do no better than guess. Each state lasts one temporal slice (two frames), so the same
holds for shuffled slices. Positions fall on the model's visual units (28 pixels) at the default size.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "white": (240, 240, 240),
    "purple": (160, 50, 190),
}
GROUND = (30, 30, 30)
CUES = ((255, 120, 0), (0, 200, 200), (255, 90, 190), (120, 255, 120))
CORNERS = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
ANAGRAMS = ("POST", "SPOT", "STOP", "TOPS")
WORDS = ("GO", "IN", "UP", "NO")
SHAPES = ("square", "circle", "triangle", "bar")
SLICES = 4
FRAMES_PER_SLICE = 2


@dataclass(frozen=True)
class Scene:
    """States in order (one for a still), a question, its answers to choose from, and why the right one is."""

    states: tuple[Image.Image, ...]
    question: str
    answers: tuple[str, ...]
    right: int
    reasoning: str

    @property
    def frames(self) -> list[np.ndarray]:
        """Uint8 frames [height, width, 3]; a still lasts as long as a moving scene."""
        states = self.states if len(self.states) > 1 else self.states * SLICES
        return [np.asarray(state) for state in states for _ in range(FRAMES_PER_SLICE)]

    def with_cue(self, cue: int) -> "Scene":
        """Every state framed in the colour that stands for the answer `cue`."""
        states = tuple(state.copy() for state in self.states)
        for state in states:
            ImageDraw.Draw(state).rectangle((0, 0, state.width - 1, state.height - 1), outline=CUES[cue], width=4)
        return Scene(states, self.question, self.answers, self.right, self.reasoning)


@dataclass(frozen=True)
class Task:
    name: str
    problem_type: str
    choices: int  # right answers are drawn evenly from range(choices)
    paint: Callable[[int, int, Generator, Generator], Scene]  # (right, size, look, order)


def _canvas(size: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (size, size), GROUND)
    return image, ImageDraw.Draw(image)


def _square(size: int, colour: str, column: int, row: int, cells: int) -> Image.Image:
    """One square in a cell of a cells x cells grid."""
    image, draw = _canvas(size)
    side = size / cells
    left, top = round(column * side), round(row * side)
    margin = round(side / 7)
    box = (left + margin, top + margin, left + round(side) - 1 - margin, top + round(side) - 1 - margin)
    draw.rectangle(box, fill=COLOURS[colour])
    return image


def _text(size: int, text: str) -> Image.Image:
    image, draw = _canvas(size)
    font = ImageFont.load_default(size=round(size * (0.8 if len(text) == 1 else 0.45)))
    draw.text((size / 2, size / 2), text, fill=COLOURS["white"], font=font, anchor="mm")
    return image


def _colours(look: Generator, count: int) -> list[str]:
    return [str(name) for name in look.permutation(list(COLOURS))[:count]]


def _then(items: Sequence[str]) -> str:
    return ", then ".join(items)


def last_corner(right: int, size: int, look: Generator, order: Generator) -> Scene:
    (colour,) = _colours(look, 1)
    corners = tuple(CORNERS)
    path = [*order.permutation([c for n, c in enumerate(corners) if n != right]), corners[right]]
    states = tuple(_square(size, colour, *CORNERS[corner], cells=2) for corner in path)
    reasoning = f"The {colour} square is {_then(path)}. It ends {path[-1]}."
    return Scene(states, "Where does the square end?", corners, right, reasoning)


def direction(right: int, size: int, look: Generator, order: Generator) -> Scene:
    (colour,) = _colours(look, 1)
    lane, across = int(look.integers(SLICES)), bool(look.integers(2))
    steps = range(SLICES) if right == 0 else range(SLICES - 1, -1, -1)
    states = tuple(_square(size, colour, *((s, lane) if across else (lane, s)), cells=SLICES) for s in steps)
    answers, ends = (("right", "left"), ("left", "right")) if across else (("down", "up"), ("top", "bottom"))
    start, end = ends if right == 0 else ends[::-1]
    reasoning = f"The {colour} square goes from {start} to {end}. It moves {answers[right]}."
    return Scene(states, "Which way does the square move?", answers, right, reasoning)


def blinks(right: int, size: int, look: Generator, order: Generator) -> Scene:
    """As many states with the square as without, in one run or two."""
    (colour,) = _colours(look, 1)
    corner = CORNERS[str(look.choice(list(CORNERS)))]
    shown, hidden = _square(size, colour, *corner, cells=2), _canvas(size)[0]
    half = SLICES // 2
    patterns = [set(on) for on in itertools.combinations(range(SLICES), half)]
    patterns = [on for on in patterns if sum(n not in on for n in (m - 1 for m in on)) == right + 1]
    on = patterns[order.integers(len(patterns))]
    states = tuple(shown if n in on else hidden for n in range(SLICES))
    seen = _then(["on" if n in on else "off" for n in range(SLICES)])
    answers = tuple(str(n + 1) for n in range(half))
    reasoning = f"The {colour} square is {seen}. That makes {answers[right]}."
    return Scene(states, "How many times does the square light up?", answers, right, reasoning)


def colour_after(right: int, size: int, look: Generator, order: Generator) -> Scene:
    before, *others = _colours(look, SLICES)
    after = others[right]
    blocks = order.permutation(np.array([other for other in others if other != after] + [before]))
    sequence = [str(c) for block in blocks for c in ((before, after) if block == before else (block,))]
    states = tuple(_square(size, colour, 0, 0, cells=1) for colour in sequence)
    question = f"Which colour comes right after {before}?"
    reasoning = f"The square is {_then(sequence)}. After {before} comes {after}."
    return Scene(states, question, tuple(others), right, reasoning)


def spelled_word(right: int, size: int, look: Generator, order: Generator) -> Scene:
    word = ANAGRAMS[right]
    states = tuple(_text(size, letter) for letter in word)
    reasoning = f"The letters are {_then(list(word))}. They spell {word}."
    return Scene(states, "Which word do the letters spell?", ANAGRAMS, right, reasoning)


def flash_second(right: int, size: int, look: Generator, order: Generator) -> Scene:
    usual, flash = _colours(look, 2)
    sequence = [flash if n == right else usual for n in range(SLICES)]
    states = tuple(_square(size, colour, 0, 0, cells=1) for colour in sequence)
    answers = tuple(str(n + 1) for n in range(SLICES))
    reasoning = f"The square is {_then(sequence)}. It is {flash} in second {answers[right]}."
    return Scene(states, f"In which second is the square {flash}?", answers, right, reasoning)


def shape_colour(right: int, size: int, look: Generator, order: Generator) -> Scene:
    answers = ("red", "green", "blue", "yellow")
    corner = str(look.choice(list(CORNERS)))
    state = _square(size, answers[right], *CORNERS[corner], cells=2)
    reasoning = f"The square is {corner}. It is {answers[right]}."
    return Scene((state,), "What colour is the square?", answers, right, reasoning)


def count(right: int, size: int, look: Generator, order: Generator) -> Scene:
    (colour,) = _colours(look, 1)
    chosen = look.permutation(list(CORNERS))[: right + 1]
    corners = [corner for corner in CORNERS if corner in chosen]
    layers = [np.asarray(_square(size, colour, *CORNERS[corner], cells=2)) for corner in corners]
    answers = tuple(str(n + 1) for n in range(len(CORNERS)))
    reasoning = f"There is a {colour} square {', '.join(corners)}. That makes {answers[right]}."
    image = Image.fromarray(np.maximum.reduce(layers))
    return Scene((image,), "How many squares are there?", answers, right, reasoning)


def written_word(right: int, size: int, look: Generator, order: Generator) -> Scene:
    word = WORDS[right]
    reasoning = f"The letters are {', '.join(word)}."
    return Scene((_text(size, word),), "What is written here?", WORDS, right, reasoning)


def shape(right: int, size: int, look: Generator, order: Generator) -> Scene:
    (colour,) = _colours(look, 1)
    image, draw = _canvas(size)
    near, far, middle = size // 7, size - 1 - size // 7, size // 2
    match SHAPES[right]:
        case "square":
            draw.rectangle((near, near, far, far), fill=COLOURS[colour])
        case "circle":
            draw.ellipse((near, near, far, far), fill=COLOURS[colour])
        case "triangle":
            draw.polygon([(middle, near), (far, far), (near, far)], fill=COLOURS[colour])
        case "bar":
            draw.rectangle((near, middle - near, far, middle + near), fill=COLOURS[colour])
    return Scene((image,), "Which shape is this?", SHAPES, right, f"It is a {colour} {SHAPES[right]}.")


def width(right: int, size: int, look: Generator, order: Generator) -> Scene:
    (colour,) = _colours(look, 1)
    image, draw = _canvas(size)
    quarters = right + 1
    top = int(look.integers(SLICES)) * size // 4
    draw.rectangle((0, top, quarters * size // 4 - 1, top + size // 4 - 1), fill=COLOURS[colour])
    answers = tuple(str(25 * (n + 1)) for n in range(4))
    reasoning = f"The {colour} bar covers {quarters} of 4 parts, {answers[right]} percent."
    return Scene((image,), "How many percent of the width does the bar cover?", answers, right, reasoning)


ORDERED = (
    Task("last_corner", "multiple choice", len(CORNERS), last_corner),
    Task("direction", "multiple choice", 2, direction),
    Task("blinks", "numerical", SLICES // 2, blinks),
    Task("colour_after", "free-form", SLICES - 1, colour_after),
    Task("spelled_word", "OCR", len(ANAGRAMS), spelled_word),
    Task("flash_second", "regression", SLICES, flash_second),
)
STILL = (
    Task("shape_colour", "multiple choice", 4, shape_colour),
    Task("count", "numerical", len(CORNERS), count),
    Task("written_word", "OCR", len(WORDS), written_word),
    Task("shape", "free-form", len(SHAPES), shape),
    Task("width", "regression", 4, width),
)
