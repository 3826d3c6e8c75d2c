"""Runs decoders in a process that may hang, crash or be killed at the cost of one file.

`IsolatedProcess` is the parent's side, `serve` the child's. A request is one JSON object; a reply is a JSON
header followed by raw array bytes: nothing is unpickled. The kernel's alarm clock ends a child that overruns
its deadline, even one stuck in C code. A child ends with its parent, whatever it is doing and however the parent
ended: its standard input is a pipe that nobody writes to, and that closes when the parent is gone.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from vr1_jax.media.frames import MediaError

LENGTH = struct.Struct("<Q")
START_SECONDS = 60.0  # importing numpy, decord and av on a machine under load
GRACE_SECONDS = 5.0  # for the kernel's alarm to end the child before the parent does
MAX_HEADER_BYTES = 1 << 24
Handler = Callable[[dict], tuple[dict, list[np.ndarray]]]


class IsolatedProcess:
    """Calls a handler in a child process, one request at a time, with a deadline for each.

    `module` is run with `python -m` and must end in `serve(handler)`. The child starts with the first call
    and is replaced after a failure. A child that crashes is given the same request once more when it had
    served others before, so that the outcome does not depend on what came earlier.
    """

    def __init__(self, module: str, deadline: float, memory_bytes: int):
        self.module, self.deadline, self.memory_bytes = module, deadline, memory_bytes
        self._lock = threading.Lock()
        self._process = self._socket = None
        self._served = 0

    def call(self, path: str, request: dict) -> tuple[dict, list[np.ndarray]]:
        """The handler's answer for the file `path`, or MediaError: its own, "timeout" or "crashed"."""
        with self._lock:
            fresh = self._served == 0
            try:
                return self._call(path, request)
            except MediaError as error:
                if error.reason != "crashed" or fresh:
                    raise
            return self._call(path, request)

    def _call(self, path, request):
        if self._process is None:
            self._start()
        self._served += 1
        try:
            _send(self._socket, request, [])
            header, arrays = _receive(self._socket, self.deadline + GRACE_SECONDS)
        except TimeoutError as error:
            self._stop()
            raise MediaError(path, "timeout", f"decoding took more than {self.deadline:g} s") from error
        except (EOFError, OSError) as error:
            raise self._obituary(path) from error
        except BaseException:  # interrupted half-way through a reply: the next call must not read the rest
            self._stop()
            raise
        if "error" in header:
            if header["error"]["reason"] == "crashed":
                self._stop()
            raise MediaError(path, **header["error"])
        return header["result"], arrays

    def _start(self) -> None:
        parent, child = socket.socketpair()
        arguments = [str(child.fileno()), str(self.deadline), str(self.memory_bytes)]
        with child:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module, *arguments],
                pass_fds=[child.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._socket, self._served = parent, 0
        try:
            _receive(parent, START_SECONDS)
        except (EOFError, OSError) as error:
            self._stop()
            raise RuntimeError(f"the decoding process does not start; try: python -m {self.module}") from error

    def _obituary(self, path) -> MediaError:
        """Why the child is gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_SECONDS)
        code = self._process.returncode
        self._stop()
        if code == -signal.SIGALRM:
            return MediaError(path, "timeout", f"decoding took more than {self.deadline:g} s")
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
        return MediaError(path, "crashed", f"the decoder crashed ({how})")

    def _stop(self) -> None:
        if self._process is not None:
            self._socket.close()
            self._process.stdin.close()
            self._process.kill()
            self._process.wait()
        self._process = self._socket = None
        self._served = 0

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()


def end_after(wait: Callable[[], object]) -> None:
    """End this process when `wait` returns, in the midst of whatever it is doing then."""

    def watch() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=watch, name="end", daemon=True).start()


def end_with_parent() -> None:
    """For the children of Python's own pools, which otherwise wait for a parent that is gone."""
    end_after(multiprocessing.parent_process().join)


def serve(handler: Handler) -> None:
    """Answer requests until the parent goes away. Arguments: socket number, deadline, memory limit."""
    number, deadline, memory_bytes = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    for of_parent in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a run, and the parent's business
        signal.signal(of_parent, signal.SIG_IGN)
    end_after(lambda: os.read(sys.stdin.fileno(), 1))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _limit_memory(memory_bytes)
    with socket.socket(fileno=number) as connection:
        _send(connection, {"ready": True}, [])
        while True:
            try:
                request, _ = _receive(connection, None)
            except EOFError:
                return
            signal.setitimer(signal.ITIMER_REAL, deadline)
            reply, arrays, sound = _answer(handler, request)
            _send(connection, reply, arrays)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if not sound:
                return


def _answer(handler: Handler, request: dict) -> tuple[dict, list[np.ndarray], bool]:
    """The reply, and whether this process can be trusted with another file."""
    try:
        result, arrays = handler(request)
        return {"result": result}, arrays, True
    except MediaError as error:
        return {"error": {"reason": error.reason, "detail": error.detail}}, [], True
    except Exception as error:
        detail = f"the decoder failed ({type(error).__name__}: {error})"
        return {"error": {"reason": "crashed", "detail": detail}}, [], False


def _limit_memory(memory_bytes: int) -> None:
    """Let a decompression bomb end this process, not the machine."""
    if sys.platform != "linux":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _send(connection: socket.socket, header: dict, arrays: list[np.ndarray]) -> None:
    layout = [[array.dtype.str, array.shape] for array in arrays]
    text = json.dumps(header | {"arrays": layout}).encode()
    connection.settimeout(None)
    connection.sendall(LENGTH.pack(len(text)) + text)
    for array in arrays:
        connection.sendall(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _receive(connection: socket.socket, seconds: float | None) -> tuple[dict, list[np.ndarray]]:
    end = None if seconds is None else time.monotonic() + seconds
    (length,) = LENGTH.unpack(_read(connection, bytearray(LENGTH.size), end))
    if length > MAX_HEADER_BYTES:
        raise EOFError(f"a header of {length} bytes")
    header = json.loads(bytes(_read(connection, bytearray(length), end)))
    arrays = []
    for dtype, shape in header.pop("arrays"):
        array = np.empty(shape, np.dtype(dtype))
        _read(connection, array.reshape(-1).view(np.uint8), end)
        arrays.append(array)
    return header, arrays


def _read(connection, buffer, end):
    view = memoryview(buffer)
    while view:
        if end is not None:
            connection.settimeout(max(end - time.monotonic(), 1e-3))
        count = connection.recv_into(view)
        if not count:
            raise EOFError("the other process closed the connection")
        view = view[count:]
    return buffer
