"""What the commands share: arguments that mean the same in all of them, exit codes, and one line for a mistake.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted. Nothing slow is imported before it
is needed, so that `--help` answers at once.
"""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vr1_jax.errors import UsageError, UserError
from vr1_jax.files import out_of_space

if TYPE_CHECKING:
    from vr1_jax.data.presentation import Presentation
    from vr1_jax.media.frames import FrameBudget, ImageBudget

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run(name: str, work: Callable[[], int | None], *, out: Path | None = None, interrupted: str = "") -> int:
    """The exit code of `work`, which is what it returns or 0. Mistakes get one line, faults of ours a traceback.

    `out` is named when the system cannot write and does not say where; `interrupted` says what Ctrl-C leaves.
    """
    told, saying = [], threading.Lock()

    def end() -> int:
        with saying:  # the main thread and the one that watches may both be ending
            if not told:
                _fail(name, "; ".join(filter(None, ("interrupted", interrupted))), INTERRUPTED)
                told.append(True)
        return INTERRUPTED

    try:
        with _second_ctrl_c(end):
            code = work() or 0
            sys.stdout.flush()  # here, and not when Python ends: an error would be lost
    except KeyboardInterrupt:
        return end()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not isinstance(error, UserError | OSError) and not out_of_space(error):
            raise
        return _fail(name, _describe(error, out), getattr(error, "exit_code", 1))
    return code


def keep_compiled_programs() -> None:
    """What was compiled is found again by the next command on this machine. To be called before JAX is imported.

    JAX's own variables move the cache or turn it off: JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(caches) / "vr1_jax/compiled"))


@contextlib.contextmanager
def _second_ctrl_c(end: Callable[[], int]) -> Iterator[None]:
    """The first Ctrl-C is Python's KeyboardInterrupt, which modules may swallow while they are imported, or heed
    only when a long computation is over. The second one ends the process at once.

    Python writes the number of every signal that it handles to the socket, whatever the main thread is doing.
    """
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, written = socket.socketpair()
    written.setblocking(False)

    asked = False

    def interrupt(*_: object) -> NoReturn:
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    def watch() -> None:
        interrupts = 0
        while number := ours.recv(1):
            interrupts += number[0] == signal.SIGINT
            if interrupts == 2:
                os._exit(end())

    signal.signal(signal.SIGINT, interrupt)
    before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=watch, name="second Ctrl-C", daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN if asked else usual)  # asked, it ends without another's help
        signal.set_wakeup_fd(before)
        written.close()  # which ends the thread


def _fail(name: str, message: str, code: int) -> int:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _describe(error: Exception, out: Path | None) -> str:
    if out_of_space(error):
        return f"{getattr(error, 'filename', None) or out or 'output'}: the disk is full; nothing was kept"
    if isinstance(error, FileExistsError):  # of mkdir, which is content with a directory
        return f"{error.filename}: is in the way, for it is not a directory"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or out or 'output'}: {error.strerror}"
    return str(error)


class Parser(ArgumentParser):
    """Shows the head of the script as its help, and says what is wrong in one line."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.removesuffix('.py')}: {message}; --help lists what there is\n")


def existing_directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise ArgumentTypeError(f"{text}: {'not a directory' if path.exists() else 'no such directory'}")
    return path


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ArgumentTypeError(f"{number}: must be at least 1")
    return number


def natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ArgumentTypeError(f"{number}: must not be negative")
    return number


def byte_size(text: str) -> int:
    """Bytes of '5GB', '500MB' and the like (powers of ten, as Hugging Face counts)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size < 1:
        raise ArgumentTypeError(f"{text!r} is not a size such as 5GB or 500MB")
    return size


def add_model(parser: ArgumentParser, *other_names: str) -> None:
    what = "Hugging Face, converted or run directory"
    parser.add_argument("--model", *other_names, type=Path, required=True, metavar="DIR", help=what)


def add_records(
    parser: ArgumentParser, what: str = "JSON list or JSON lines", *, media_required: bool = True
) -> None:
    root = "what the records' paths are relative to"
    parser.add_argument("--records", type=Path, required=True, metavar="FILE", help=what)
    parser.add_argument("--media-root", type=Path, required=media_required, metavar="DIR", help=root)


def check_media_root(path: Path) -> None:
    if not path.is_dir():
        raise UsageError(f"--media-root {path}: no such directory; it holds the records' media")


def add_asking(parser: Any, *, frames: bool = True) -> None:
    """How records are put before a model; `asked` reads them. To a parser or a group of its arguments."""
    if frames:
        parser.add_argument("--frames", type=int, metavar="N", help="most frames of a video; default as trained")
    parser.add_argument("--frame-pixels", type=int, metavar="N", help="of a frame, resized; default as trained")
    parser.add_argument("--image-pixels", type=int, metavar="N", help="most of an image; default as trained")
    for name, choices, what in (
        ("prompt", ("fixed", "upstream"), "the words around a question"),
        ("positions", ("published", "transformers5"), "how positions go on after a video"),
        ("spacing", ("measured", "constant"), "what a slice of a video lasts, as positions see it"),
    ):
        default = "default as trained; of a model trained elsewhere, the first"
        parser.add_argument(f"--{name}", choices=choices, help=f"{what}: {' or '.join(choices)}; {default}")


def asked(chosen: Namespace, *, evaluating: bool = False) -> "Presentation":
    """How --model was trained to see records, with what the user wants otherwise."""
    from vr1_jax.data.presentation import read_presentation
    from vr1_jax.weights.checkpoint_dir import assets_directory

    _check_frames(chosen.frames)
    trained = read_presentation(assets_directory(chosen.model))
    names = ("frames", "frame_pixels", "image_pixels", "prompt", "positions", "spacing")
    try:
        told = {name: getattr(chosen, name) for name in names}
        return (trained.evaluated() if evaluating else trained).told(**told)
    except ValueError as error:
        raise UsageError(f"--frames, --frame-pixels or --image-pixels: {error}") from None


def add_budgets(parser: ArgumentParser) -> None:
    """For commands that prepare or show training data; `training_budgets` reads them."""
    parser.add_argument("--frames", type=int, default=16, metavar="N", help="most frames of a video; default 16")
    for kind, units, what in (
        ("frame", 128, "pixels of a frame after resizing"),
        ("image", 256, "most pixels of an image after resizing"),
    ):
        what = f"{what}; default {units} x 28 x 28"
        parser.add_argument(f"--{kind}-pixels", type=int, default=units * 28 * 28, metavar="N", help=what)


def training_budgets(chosen: Namespace) -> "tuple[FrameBudget, ImageBudget]":
    from vr1_jax.media.frames import TRAINING_BUDGET, FrameBudget, ImageBudget

    _check_frames(chosen.frames)
    fewest, pixels = min(TRAINING_BUDGET.min_frames, chosen.frames), chosen.frame_pixels
    try:
        frames = FrameBudget(min_frames=fewest, max_frames=chosen.frames, min_pixels=pixels, max_pixels=pixels)
        return frames, ImageBudget(max_pixels=chosen.image_pixels)
    except ValueError as error:
        raise UsageError(f"--frame-pixels or --image-pixels: {error}") from None


def _check_frames(frames: int | None) -> None:
    if frames is not None and frames < 2:
        raise UsageError(f"--frames is {frames}; it must be at least 2")
