"""The reference pages say what the command line and the recipe hold today."""

import re

import reference


def test_the_reference_pages_are_those_of_todays_options_and_keys(capsys):
    assert reference.main(["--check"]) == 0, capsys.readouterr().out


def test_every_option_and_every_key_has_a_meaning():
    for page in (reference.cli_page(), reference.recipe_page()):
        rows = [line for line in page.splitlines() if line.startswith("| `")]
        assert len(rows) > 50
        assert [row for row in rows if not re.search(r"\w[^|]*\|$", row)] == []
