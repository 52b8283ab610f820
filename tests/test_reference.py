"""The README's list of options is what the command line takes."""

import pytest
from reference import README, commands, parameters, with_listing

TEXT = README.read_text("utf-8")


def test_the_list_of_options_is_that_of_the_command_line():
    assert with_listing(TEXT) == TEXT, "run: python tests/reference.py"


def test_every_option_says_what_it_is():
    for name, command in commands():
        for parameter in parameters(name, command):
            assert parameter.meaning, f"{name} {parameter.names}"


def test_the_variables_that_the_readme_names_are_those_of_the_options():
    told = {p.meaning.rsplit("(`", 1)[1].rstrip("`)") for p in _all() if "(`FACEVAE_" in p.meaning}
    section = TEXT.split("## All options", 1)[1].split("<!--", 1)[0]
    assert told == {
        word.split("=")[0] for word in section.split("`") if word.startswith("FACEVAE_")
    }


@pytest.mark.parametrize("common", ["--json", "--quiet"])
def test_every_command_has_the_common_options(common):
    for name, command in commands():
        assert any(common in p.names for p in parameters(name, command)), name


def _all():
    return [p for name, command in commands() for p in parameters(name, command)]
