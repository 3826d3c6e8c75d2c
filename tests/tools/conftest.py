import commands
import pytest


@pytest.fixture(scope="session")
def load_command():
    """The module of a script, by name."""

    return lambda name: commands.load_command(f"scripts/{name}.py")
