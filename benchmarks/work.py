"""Work: what is measured, as sizes and as token ids. Both sides of a row get the same.

Knows nothing about who does it, so it imports neither torch nor the client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Groups of sequences: the samples of a group share their prompt and go on by themselves."""

    groups: int = 1
    samples: int = 1
    prompt: int = 0
    """Tokens that the samples of a group have in common."""
    tokens: int = 1
    """Tokens of each sample after the prompt."""
    turns: int = 1
    """How often a conversation is given `prompt` more tokens and answers with `tokens`."""
    rank: int = 0
    """Of the LoRA adapter; 0 is the bare base model."""

    @property
    def sequences(self) -> int:
        """Samples of all groups."""
        return self.groups * self.samples

    @property
    def sampled_tokens(self) -> int:
        """Tokens after the prompts."""
        return self.sequences * self.tokens

    @property
    def total_tokens(self) -> int:
        """Tokens of all sequences, each counted with its prompt, however often that is computed."""
        return self.sequences * (self.prompt + self.tokens)

    @property
    def distinct_tokens(self) -> int:
        """Tokens of all sequences with each group's prompt counted once."""
        return self.groups * self.prompt + self.sampled_tokens

    def unshared(self) -> Work:
        """As many sequences of the same lengths, no two of which have a prompt in common."""
        return replace(self, groups=self.sequences, samples=1)

    def small(self) -> Work:
        """The same kind of work, small: what a measurement warms up with."""
        return replace(
            self,
            groups=1,
            samples=min(self.samples, 2),
            prompt=min(self.prompt, 16),
            tokens=min(self.tokens, 16),
            turns=min(self.turns, 2),
        )

    def draw(self, repetition: int, vocab_size: int) -> list[list[Ids]]:
        """Random token ids: one list a group, one (prompt + tokens,) array a sample.

        Every repetition has its own, so that nothing remembered from one serves the next.
        """
        rng = np.random.default_rng([repetition, self.groups, self.samples, self.prompt, self.tokens])
        drawn: list[list[Ids]] = []
        for _ in range(self.groups):
            start = rng.integers(0, vocab_size, self.prompt)
            drawn.append(
                [
                    np.concatenate([start, rng.integers(0, vocab_size, self.tokens)])
                    for _ in range(self.samples)
                ]
            )
        return drawn


def converse(
    work: Work, repetition: int, vocab_size: int, answer: Callable[[list[Ids]], Sequence[Sequence[int]]]
) -> None:
    """Conversations side by side: all are given random tokens, all are answered, and so on.

    Args:
        answer: the completions of all conversations so far, `work.tokens` each.
    """
    rng = np.random.default_rng([repetition, work.groups, work.turns, work.prompt, work.tokens])
    conversations: list[Ids] = [np.empty(0, np.int64)] * work.groups
    for _ in range(work.turns):
        said = [np.concatenate([each, rng.integers(0, vocab_size, work.prompt)]) for each in conversations]
        answers = answer(said)
        assert [len(ids) for ids in answers] == [work.tokens] * work.groups
        conversations = [
            np.concatenate([each, np.array(ids, np.int64)]) for each, ids in zip(said, answers, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement: a function "module:name", and what it is to do."""

    function: str
    model: str
    """Hub id or folder, as the server takes it."""
    folder: str = ""
    """Where the same weights are on disk, for the alternatives."""
    dtype: str = "float32"
    vocab_size: int = 0
    work: Work
    repeats: int = 1
    base_url: str = ""
    """A server to use; without one, a measurement of ours starts its own."""
    quick: bool = False
    """Whether an alternative should rather start fast than run at its best."""
    compiles: bool = False
    """Whether the one who does the work compiles for every new shape."""

    @property
    def warm_up(self) -> Work:
        """What to do before anything is timed: all of it, where less would leave something to compile."""
        return self.work if self.compiles else self.work.small()


@dataclass(frozen=True, eq=False)
class Policy:
    """A sequence as importance sampling wants it: inputs, targets shifted by one, logprobs, advantages."""

    tokens: Ids
    targets: Ids
    logprobs: Floats
    advantages: Floats


def policy(sequence: Ids, prompt: int) -> Policy:
    """A training example of a sequence: advantages of +-1 after the prompt, 0 on it."""
    advantages = np.where(np.arange(len(sequence) - 1) % 2, 1.0, -1.0).astype(np.float32)
    advantages[: max(prompt - 1, 0)] = 0.0
    # Near the trainer's own logprobs of random tokens, so that ratios stay in range.
    logprobs = np.where(advantages != 0, -10.0, 0.0).astype(np.float32)
    return Policy(sequence[:-1], sequence[1:], logprobs, advantages)


class Unavailable(Exception):
    """A measurement that cannot be made here; the message says what is missing."""


measured_in: ContextVar[Callable[[], AbstractContextManager[object]]] = ContextVar(
    "measured_in", default=nullcontext
)
"""What a measurement stands in: nothing, or a profiler."""


def timed(once: Callable[[int], None], repeats: int) -> list[float]:
    """Seconds that each of `once(1)`, `once(2)`, ... takes. Warm up first, with `once(0)` or with less."""
    seconds: list[float] = []
    with measured_in.get()():
        for repetition in range(1, repeats + 1):
            started = perf_counter()
            once(repetition)
            seconds.append(perf_counter() - started)
    return seconds
