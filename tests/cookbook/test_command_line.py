from dataclasses import dataclass

import pytest

from cookbook.command_line import NAMES, field_docstrings, parse
from cookbook.keeping import Keeping
from cookbook.loop import TrainConfig
from cookbook.runs import Setup, TeacherSetup
from cookbook.supervised import SupervisedConfig


@dataclass(frozen=True, kw_only=True)
class Oven:
    """How hot, and for how long.

    Not shown.
    """

    temperature: float = 180.0
    """In degrees; 100% of
    what the dial says."""
    minutes: int = 40
    """Until done."""
    fan: bool = False
    """Move the air."""
    racks: NAMES = ()
    """Where the trays go."""


def test_flags_replace_the_recipe_s_values_and_nothing_else():
    [oven] = parse("bake", "Bake.", [Oven(minutes=30)], ["--temperature", "200", "--fan"])
    assert oven == Oven(temperature=200.0, minutes=30, fan=True)


def test_a_flag_of_names_may_be_repeated():
    [oven] = parse("bake", "Bake.", [Oven()], ["--racks", "top", "--racks", "middle"])
    assert oven.racks == ("top", "middle")
    assert parse("bake", "Bake.", [Oven()], []) == [Oven()]


def test_help_is_the_docstring_and_the_field_docstrings(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse("bake", "Bake.\n\n    as written", [Oven()], ["--help"])
    text = capsys.readouterr().out
    assert "Bake.\n\n    as written" in text
    assert "How hot, and for how long:" in text
    assert "Not shown" not in text
    assert "In degrees; 100% of what the dial says. [180.0]" in " ".join(text.split())


def test_an_unknown_flag_is_an_error(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse("bake", "Bake.", [Oven()], ["--hours", "1"])
    assert "unrecognized arguments: --hours 1" in capsys.readouterr().err


def test_a_value_that_the_recipe_does_not_take_is_an_error(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse("train", "Train.", [TrainConfig()], ["--evaluate-every", "0"])
    assert "evaluate_every is 0; it must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("config", [Setup, TeacherSetup, Keeping, TrainConfig, SupervisedConfig])
def test_every_field_of_a_recipe_is_explained(config: type):
    assert set(field_docstrings(config)) == set(config.__dataclass_fields__)
