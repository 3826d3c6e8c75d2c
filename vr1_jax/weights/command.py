"""What both conversion commands share: exit codes, and one line for each thing that can go wrong."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path


def existing_directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such directory")
    return path


def byte_size(text: str) -> int:
    """Bytes of '5GB', '500MB' and the like (powers of ten, as Hugging Face counts)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB or 500MB")
    return size


def finish(work: Callable[[], None], done: str) -> int:
    """The exit code of `work`: 0 done, 1 failed, 2 wrong usage. Nothing of a failed output remains."""
    from vr1_jax.weights.errors import CheckpointError, OutputError
    from vr1_jax.weights.output import out_of_space

    try:
        work()
    except OutputError as error:
        return _fail(str(error), 2)
    except CheckpointError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was kept", 1)
    except (OSError, ValueError) as error:
        if out_of_space(error):
            return _fail("the disk is full; nothing was kept", 1)
        if isinstance(error, OSError):
            return _fail(f"{error.filename or 'output'}: {error.strerror or error}; nothing was kept", 1)
        raise
    print(done)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
