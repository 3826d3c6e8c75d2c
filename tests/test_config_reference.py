"""docs/configuration.md is what the configs say."""

from commands import load_command


def test_the_page_is_up_to_date():
    reference = load_command("scripts/config_reference.py")
    assert reference.PAGE.read_text("utf-8") == reference.make_page(), "run: python scripts/config_reference.py"


def test_every_field_has_a_meaning():
    rows = [line for line in load_command("scripts/config_reference.py").make_page().splitlines() if "| `" in line]
    assert len(rows) > 70
    assert [row for row in rows if row.endswith("|  |")] == []
