"""Training examples that no task answers: plain documents, and what a model itself said.

Both are ordinary `RenderedExample`s, for `supervised.train_on_examples`. Knows nothing about losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import numpy as np

from cookbook.renderers import RenderedExample, Tokenizer
from cookbook.rollouts import Group


def document_examples(documents: Iterator[str], tokenizer: Tokenizer) -> Iterator[RenderedExample]:
    """Plain text, without any layout of a chat; every token is learned."""
    for document in documents:
        tokens = list(tokenizer.encode(document, add_special_tokens=False))
        yield RenderedExample(tokens, np.ones(len(tokens), dtype=np.float32))


def sampled_examples(groups: Sequence[Group]) -> list[RenderedExample]:
    """What a model said, token by token as it was sampled; the prompts are given and not learned."""
    return [
        RenderedExample(
            [*trajectory.prompt_tokens, *trajectory.completion_tokens],
            np.concatenate(
                [
                    np.zeros(len(trajectory.prompt_tokens), dtype=np.float32),
                    np.ones(len(trajectory.completion_tokens), dtype=np.float32),
                ]
            ),
        )
        for group in groups
        for trajectory in group.trajectories
    ]


def repeated(examples: Sequence[RenderedExample], seed: int) -> Iterator[RenderedExample]:
    """The same examples for ever, shuffled anew for every pass.

    Raises:
        ValueError: there are none.
    """
    if not examples:
        raise ValueError("there are no examples to repeat")
    random = Random(seed)
    while True:
        yield from random.sample(examples, len(examples))


def mixed(
    first: Iterator[RenderedExample], second: Iterator[RenderedExample], first_share: float
) -> Iterator[RenderedExample]:
    """Two endless streams in one: of any stretch, `first_share` are of the first, evenly spread.

    Raises:
        ValueError: the share is not within 0..1.
    """
    if not 0.0 <= first_share <= 1.0:
        raise ValueError(f"a share lies between 0 and 1, not at {first_share}")
    owed = 0.0
    while True:
        owed += first_share
        # Shares such as 0.7 add up inexactly; what counts is where the sum passes a whole number.
        if owed > 1.0 - 1e-9:
            owed -= 1.0
            yield next(first)
        else:
            yield next(second)
