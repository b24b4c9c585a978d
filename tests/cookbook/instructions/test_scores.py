"""Strict and loose, per prompt and per instruction, worked by hand."""

import pytest

from cookbook.instructions.case import Lowercase, NoCommas
from cookbook.instructions.ends import Ending, Opening
from cookbook.instructions.form import BulletCount
from cookbook.instructions.length import WordCount
from cookbook.instructions.scores import follows, follows_loosely, score, variants


def test_the_four_figures_of_two_prompts():
    asked = [[Lowercase(), NoCommas()], [Opening("Rivers")]]
    replies = ["lower, case", "Sure!\nRivers flow."]
    scores = score(asked, replies)
    assert (scores.prompt_strict, scores.prompt_loose) == (0.0, 0.5)
    assert (scores.instruction_strict, scores.instruction_loose) == (1 / 3, 2 / 3)
    assert scores.by_kind == {"Lowercase": 1.0, "NoCommas": 0.0, "Opening": 0.0}
    assert scores.prompts == (False, False)


def test_the_loose_forms_are_without_first_line_last_line_both_and_asterisks():
    assert variants("a*\nb\nc") == ["a*\nb\nc", "b\nc", "a*\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b"]


def test_what_follows_strictly_follows_loosely():
    assert follows_loosely(BulletCount(1), "* one")


def test_closing_remarks_are_forgiven_loosely_only():
    reply = "It flows. The end.\nIs there anything else?"
    assert not follows(Ending("The end."), reply)
    assert follows_loosely(Ending("The end."), reply)


def test_an_empty_reply_follows_nothing_even_if_it_breaks_nothing():
    for check in (follows, follows_loosely):
        assert not check(NoCommas(), " \n")
        assert not check(WordCount(5, "less than"), "")


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="no replies"):
        score([], [])
    with pytest.raises(ValueError, match="argument"):
        score([[NoCommas()]], [])
