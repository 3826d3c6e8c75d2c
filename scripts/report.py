"""One HTML file that shows a run: what it learned, what it answered, and what looks wrong.

    python scripts/report.py runs/demo/tgrpo [--out report.html]

The file needs nothing else: no server, no network. Numbers of all steps are in it; answers and frames of as many
steps as fit, spread evenly. A run that is still going on can be reported too. Exit code: 0 done, 1 the run cannot
be read, 2 wrong usage.
"""

import argparse
import sys
from pathlib import Path

from vr1_jax import command_line
from vr1_jax.errors import UsageError


def work(chosen: argparse.Namespace, out: Path) -> None:
    if not chosen.megabytes > 0:
        raise UsageError(f"--megabytes {chosen.megabytes:g}: must be above 0")
    if chosen.media_root is not None:
        command_line.check_media_root(chosen.media_root)
    from vr1_jax.tools.report import write_report

    written = write_report(
        chosen.run, out, force=chosen.force, megabytes=chosen.megabytes, media_root=chosen.media_root
    )
    for note in written.notes:
        print(f"report: {note}", file=sys.stderr)
    answers = f"answers of {written.steps_shown} of {written.steps_with_answers}, " * bool(
        written.steps_with_answers
    )
    print(f"{out}: {written.steps} steps, {answers}{out.stat().st_size / 1e6:.1f} MB")


def main(arguments: list[str] | None = None) -> int:
    parser = command_line.Parser(__doc__)
    parser.add_argument("run", type=command_line.existing_directory, metavar="RUN_DIR", help="directory of a run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="HTML file to write; default RUN_DIR/report.html")
    parser.add_argument("--force", action="store_true", help="replace an existing --out")
    parser.add_argument(
        "--media-root", type=Path, metavar="DIR", help="where the media are now; default as the run's config says"
    )
    parser.add_argument(
        "--megabytes", type=float, default=24.0, metavar="X", help="room for answers and frames; default 24"
    )
    chosen = parser.parse_args(arguments)
    out = chosen.out or chosen.run / "report.html"
    return command_line.run("report", lambda: work(chosen, out), out=out, interrupted="nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
