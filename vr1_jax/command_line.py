"""What the commands share: exit codes, one line for a mistake, Ctrl-C at any moment.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted. Nothing slow is imported here, so
that `--help` answers at once.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import tyro

from vr1_jax.arguments import parse
from vr1_jax.errors import UsageError, UserError
from vr1_jax.files import out_of_space

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run_command(
    name: str,
    work: Callable[..., int | None],
    kind: type,
    arguments: Sequence[str] | None,
    description: str,
    *,
    interrupted: str = "",
    overrides: bool = False,
) -> int:
    """A command's main(): reads its arguments, a `kind`, hands them to `work` and returns the exit code.

    With `overrides`, `work` gets the words that are left over too: fields of the config that --config names.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    settings = {"prog": name, "description": description, "config": (tyro.conf.FlagCreatePairsOff,)}
    if overrides:  # --config FILE --help lists the fields of that config
        asks_config = any(word.startswith("--config") for word in words)
        settings |= {"return_unknown_args": True, "add_help": not asks_config}
    try:
        chosen = parse(kind, words, **settings)
    except UsageError as error:
        return _fail(name, f"{error}; --help lists what there is", error.exit_code)
    chosen, *rest = chosen if overrides else (chosen,)
    return run(name, lambda: work(chosen, *rest), out=getattr(chosen, "out", None), interrupted=interrupted)


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
