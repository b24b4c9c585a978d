"""Examples that no task answers."""

from itertools import islice, repeat
from typing import Any

import numpy as np
import pytest

from cookbook.examples import document_examples, mixed, repeated, sampled_examples
from cookbook.renderers import RenderedExample, Renderer
from tests.cookbook.groups import make_group, make_trajectory


def example(token: int) -> RenderedExample:
    return RenderedExample([token, token], np.ones(2, dtype=np.float32))


def test_every_token_of_a_document_is_learned_and_nothing_is_added(tokenizer: Any, renderer: Renderer):
    [first, second] = document_examples(iter(["A memo.", "Another memo."]), tokenizer)
    assert renderer.text(first.tokens) == "A memo."
    assert renderer.text(second.tokens) == "Another memo."
    assert first.mask.tolist() == [1.0] * len(first.tokens)


def test_what_was_said_is_learned_exactly_as_it_was_sampled():
    group = make_group(
        make_trajectory(logprobs=[-1.0, -2.0], prompt_tokens=(5, 6, 7)), make_trajectory(logprobs=[-1.0])
    )
    for made, trajectory in zip(sampled_examples([group]), group.trajectories, strict=True):
        given = len(trajectory.prompt_tokens)
        assert made.tokens == [*trajectory.prompt_tokens, *trajectory.completion_tokens]
        assert made.mask.tolist() == [0.0] * given + [1.0] * len(trajectory.completion_tokens)


def test_a_pass_over_repeated_examples_has_each_once_in_an_order_of_its_own():
    examples = [example(token) for token in range(8)]
    stream = [made.tokens[0] for made in islice(repeated(examples, seed=0), 24)]
    passes = [stream[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(each) == list(range(8)) for each in passes)
    assert len({tuple(each) for each in passes}) == 3
    assert stream == [made.tokens[0] for made in islice(repeated(examples, seed=0), 24)]


def test_no_examples_cannot_be_repeated():
    with pytest.raises(ValueError, match="no examples"):
        next(repeated([], seed=0))


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.3, 30), (0.7, 70), (1.0, 100)])
def test_a_mix_has_the_share_that_was_asked_for_in_every_stretch(share: float, expected: int):
    stream = mixed(repeat(example(1)), repeat(example(2)), share)
    of_first = [made.tokens[0] == 1 for made in islice(stream, 100)]
    assert sum(of_first) == expected
    assert all(abs(sum(of_first[: n + 1]) - share * (n + 1)) <= 1 for n in range(100))


def test_a_share_beyond_one_is_refused():
    with pytest.raises(ValueError, match=r"between 0 and 1, not at 1\.5"):
        next(mixed(repeat(example(1)), repeat(example(2)), 1.5))
