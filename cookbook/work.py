"""Work: the token counts from which the cost of a step follows, counted while it runs.

A token costs what the layers do to it, a position whose logits are wanted also costs the unembedding,
and a pair of tokens costs attention. What a model of a given shape makes of these counts is for
`ledger`. Every sequence is counted in full, and a prompt once for each completion but in sampling,
where all of a group start from one reading of it: an upper bound, since a server may share more.
Evaluations and watching are not part of what a method needs, and not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from cookbook.rollouts import Group


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a model was asked to do, in tokens. Adds up."""

    tokens: int = 0
    """Read by the model."""
    logits: int = 0
    """Positions at which a distribution over the vocabulary was wanted."""
    attended: int = 0
    """Pairs of a token and one that it attends to, itself included."""
    trained: int = 0
    """Positions from which a gradient starts; 0 where nothing is trained."""

    def __add__(self, other: Work) -> Work:
        return Work(
            tokens=self.tokens + other.tokens,
            logits=self.logits + other.logits,
            attended=self.attended + other.attended,
            trained=self.trained + other.trained,
        )

    def __sub__(self, other: Work) -> Work:
        return Work(
            tokens=self.tokens - other.tokens,
            logits=self.logits - other.logits,
            attended=self.attended - other.attended,
            trained=self.trained - other.trained,
        )


def total(works: Iterable[Work]) -> Work:
    """The sum of any number of them, none included."""
    return sum(works, Work())


def sampling(prompt_length: int, completion_lengths: Sequence[int]) -> Work:
    """Completions of one prompt, which is read once. A completion's last token is drawn and never read."""
    p = prompt_length
    reads = [t - 1 for t in completion_lengths]
    return Work(
        tokens=p + sum(reads),
        logits=sum(completion_lengths),
        attended=p * (p + 1) // 2 + sum(read * p + read * (read + 1) // 2 for read in reads),
    )


def scoring(length: int) -> Work:
    """One sequence read to its end, with the logprob of every token but the first."""
    return Work(tokens=length, logits=length - 1, attended=length * (length + 1) // 2)


def training(length: int, trained: int) -> Work:
    """One datum of so many inputs, each with a target; gradients start from `trained` of them."""
    return Work(tokens=length, logits=length, attended=length * (length + 1) // 2, trained=trained)


def sampling_of(groups: Iterable[Group]) -> Work:
    """What it took the student to sample these."""
    return total(
        sampling(
            len(group.trajectories[0].prompt_tokens), [len(t.completion_tokens) for t in group.trajectories]
        )
        for group in groups
    )


def training_of(groups: Iterable[Group]) -> Work:
    """One policy-gradient pass over these: all tokens are read, and completions are trained."""
    return total(
        training(len(t.prompt_tokens) + len(t.completion_tokens) - 1, len(t.completion_tokens))
        for group in groups
        for t in group.trajectories
    )


def as_row(phases: Mapping[str, Work]) -> dict[str, dict[str, int]]:
    """As a row of metrics holds it, under "work"."""
    return {phase: asdict(work) for phase, work in phases.items()}


def from_row(row: Mapping[str, Mapping[str, int]]) -> dict[str, Work]:
    """The same, read back."""
    return {phase: Work(**counts) for phase, counts in row.items()}
