"""One HTML file that shows a run: what it learned, what it answered, and what looks wrong.

    python scripts/report.py runs/demo/tgrpo [--out report.html]

The file needs nothing else: no server, no network. Numbers of all steps are in it; answers and frames of as many
steps as fit, spread evenly. A run that is still going on can be reported too. Exit code: 0 done, 1 the run cannot
be read, 2 wrong usage.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vr1_jax.arguments import check_directory
from vr1_jax.command_line import run_command
from vr1_jax.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]  # directory of a run
    out: Path | None = None  # HTML file to write; None: RUN_DIR/report.html
    force: bool = False  # replace an existing --out
    media_root: Path | None = None  # where the media are now; None: as the run's config says
    megabytes: float = 24.0  # room for answers and frames

    def __post_init__(self):
        check_directory("RUN_DIR", self.run)
        if not self.megabytes > 0:
            raise UsageError(f"--megabytes {self.megabytes:g}: must be above 0")
        if self.media_root is not None:
            check_directory("--media-root", self.media_root)


def work(chosen: Arguments) -> None:
    from vr1_jax.tools.report.write import write_report

    out = chosen.out or chosen.run / "report.html"
    written = write_report(
        chosen.run, out, force=chosen.force, megabytes=chosen.megabytes, media_root=chosen.media_root
    )
    for note in written.notes:
        print(f"report: {note}", file=sys.stderr)
    answers = ""
    if written.steps_with_answers:
        answers = f"answers of {written.steps_shown} of {written.steps_with_answers}, "
    print(f"{out}: {written.steps} steps, {answers}{out.stat().st_size / 1e6:.1f} MB")


def main(arguments: list[str] | None = None) -> int:
    return run_command("report", work, Arguments, arguments, __doc__, interrupted="nothing was kept")


if __name__ == "__main__":
    sys.exit(main())
