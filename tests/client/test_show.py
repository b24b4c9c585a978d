"""What notebooks see: tokens, shaded by what matters about each."""

from __future__ import annotations

import re

import numpy as np
import pytest

import tinkerlite
from tinkerlite.notebook import MOST_TOKENS, show
from tinkerlite.types import Datum, ModelInput, SampledSequence, SampleResponse, TopkLogprobs


class Letters:
    """A tokenizer: token i is the i-th of these."""

    def decode(self, token_ids: list[int], /) -> str:
        return "".join("ab<\n"[token] for token in token_ids)


def sequence(tokens: list[int], logprobs: list[float] | None) -> SampledSequence:
    given = None if logprobs is None else np.asarray(logprobs, dtype=np.float32)
    return SampledSequence("stop", np.asarray(tokens, dtype=np.int32), given)


def shades(html: str) -> list[str | None]:
    """The background of each token."""
    return [
        (re.search(r"rgba\(([^)]*)\)", span) or [None, None])[1] for span in re.findall(r"<span[^>]*>", html)
    ]


def test_a_completion_is_shaded_where_it_was_unlikely():
    html = show(sequence([0, 1, 2], [0.0, -2.5, -50.0])).html
    assert shades(html) == [None, "214,69,65,0.33", "214,69,65,0.65"]
    assert "mean logprob -17.500" in html


def test_tokens_show_as_text_with_a_tokenizer_and_as_ids_without():
    item = sequence([0, 1, 3], [-1.0, -1.0, -1.0])
    assert re.findall(r">([^<>]*)</span>", show(item, Letters()).html) == ["a", "b", "⏎\n"]
    assert re.findall(r">([^<>]*)</span>", show(item).html) == ["0", "1", "3"]


def test_text_is_escaped():
    html = show(sequence([2], None), Letters()).html
    assert ">&lt;</span>" in html


def test_pointing_at_a_token_tells_its_numbers():
    html = show(sequence([1], [-0.25])).html
    assert 'title="position 0: token 1, logprob -0.25"' in html


def test_a_datum_is_shaded_by_its_advantages_and_in_both_directions():
    datum = Datum(
        ModelInput.from_ints([0, 1, 2]),
        {"target_tokens": [1, 2, 3], "logprobs": [0.0, -1.0, -1.0], "advantages": [0.0, 4.0, -2.0]},
    )
    html = show(datum).html
    assert shades(html) == [None, "38,166,91,0.65", "214,69,65,0.33"]
    assert "token 2, logprobs -1, advantages 4" in html


def test_a_datum_without_advantages_is_shaded_by_its_weights():
    datum = Datum(ModelInput.from_ints([0, 1]), {"target_tokens": [1, 2], "weights": [0.0, 1.0]})
    assert shades(show(datum).html) == [None, "38,166,91,0.65"]


def test_a_datum_with_many_targets_shows_its_input():
    datum = Datum(ModelInput.from_ints([7]), {"target_tokens": [[1, 2]]})
    assert ">7</span>" in show(datum).html


def test_a_response_shows_each_completion():
    response = SampleResponse(
        [sequence([0], [-1.0]), sequence([1, 1], None)],
        prompt_logprobs_np=np.array([np.nan, -1.0, -3.0], dtype=np.float32),
    )
    html = show(response).html
    assert "2 completions, 3 tokens; prompt of 3 tokens, mean logprob -2.000" in html
    assert "[0] 1 tokens, stop" in html
    assert "[1] 2 tokens, stop" in html


def test_long_sequences_are_cut_and_say_so():
    html = show(sequence([0] * (MOST_TOKENS + 5), None)).html
    assert html.count("<span") == MOST_TOKENS
    assert "... and 5 more" in html


def test_notebooks_find_the_html_by_themselves():
    datum = Datum(ModelInput.from_ints([0]), {"target_tokens": [1]})
    response = SampleResponse([sequence([0], [-1.0])])
    for item in (datum, response, response.sequences[0], show(datum)):
        assert "<span" in item._repr_html_()


def test_elsewhere_it_is_one_line():
    assert repr(show(ModelInput.from_ints([1, 2]))) == "ModelInput(2 tokens: [1, 2])"


def test_only_what_has_tokens_can_be_shown():
    with pytest.raises(tinkerlite.InvalidRequest, match="not TopkLogprobs"):
        show(TopkLogprobs(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32)))  # type: ignore[arg-type]
