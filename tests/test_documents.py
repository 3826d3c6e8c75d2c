"""The commands that README and docs show are taken as they stand."""

import re
import shlex
from pathlib import Path

import pytest
from commands import REPOSITORY, load_command

from vr1_jax import command_line

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SHOWN = re.compile(r"^ *(?:\w+=\S+ )*python ((?:scripts|convert)/\w+\.py) *(.*(?:\\\n.*)*)", re.MULTILINE)


def shown(page: Path) -> list[tuple[str, list[str]]]:
    """Script and arguments of each command in a page's blocks of code."""
    blocks = page.read_text("utf-8").split("```")[1::2]
    found = [match for block in blocks for match in SHOWN.findall(block)]
    return [(script, shlex.split(arguments, comments=True)) for script, arguments in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_accepted(page, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "run", lambda name, work, **settings: 0)  # parsed is enough
    for script, arguments in shown(page):
        module = load_command(script)
        monkeypatch.setattr(module, "check_directory", lambda name, path: None, raising=False)
        monkeypatch.setattr(module, "run", command_line.run, raising=False)
        if hasattr(module, "main"):
            assert module.main(arguments) == 0, (script, arguments, capsys.readouterr().err)


def test_there_are_some():
    assert sum(len(shown(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_exist(page):
    named = re.findall(r"\b(?:vr1_jax|scripts|convert|configs|docs|tests)/[\w/]+\.\w+", page.read_text("utf-8"))
    missing = {name for name in named if not (REPOSITORY / name).exists()} - {"configs/NAME.py"}
    assert missing == set()
