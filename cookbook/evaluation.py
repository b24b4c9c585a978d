"""Evaluation: accuracy on held-out problems, greedy or sampled, with an interval; paired comparisons.

Knows nothing about training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt

from cookbook.renderers import Renderer
from cookbook.rollouts import Problem, Task, derive_seed, rollout
from tinkerlite import SamplingClient
from tinkerlite.types import ModelInput, SamplingParams

Z_95 = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""
T_95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060)
"""Of Student's t distribution with 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Evaluation:
    """Which of the held-out problems were answered correctly, in order."""

    correct: tuple[bool, ...]
    truncated: float = 0.0
    """Share of the replies that were cut."""

    @property
    def accuracy(self) -> float:
        """Share of problems answered correctly."""
        return sum(self.correct) / len(self.correct)

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the accuracy."""
        return wilson_interval(sum(self.correct), len(self.correct))


def evaluate(
    sampler: SamplingClient, problems: Sequence[Problem], *, renderer: Renderer, task: Task, max_tokens: int
) -> Evaluation:
    """Answer every problem once, greedily; a truncated reply counts as it stands."""
    replies = greedy_replies(sampler, problems, renderer=renderer, max_tokens=max_tokens)
    grades = [task.grade(problem, reply.text) for problem, reply in zip(problems, replies, strict=True)]
    return Evaluation(
        correct=tuple(grade.correct for grade in grades),
        truncated=sum(reply.truncated for reply in replies) / len(replies),
    )


@dataclass(frozen=True)
class SampledEvaluation:
    """How often each of the held-out problems was answered correctly, of several samples each."""

    shares: tuple[float, ...]
    truncated: float = 0.0
    """Share of the replies that were cut."""

    @property
    def accuracy(self) -> float:
        """The mean share: avg@k."""
        return sum(self.shares) / len(self.shares)

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval over problems, the samples of one of which hang together.

        Student's, from the spread of the shares, within 0 and 1. Where they are all equal it is that of
        Wilson, as if each problem had been asked once: no spread among few problems is no certainty.
        """
        n = len(self.shares)
        mean = self.accuracy
        if n < 2 or min(self.shares) == max(self.shares):
            return wilson_interval(round(mean * n), n)
        half = t_95(n - 1) * sqrt(sum((share - mean) ** 2 for share in self.shares) / (n - 1) / n)
        return max(0.0, mean - half), min(1.0, mean + half)


def evaluate_sampled(
    sampler: SamplingClient,
    problems: Sequence[Problem],
    *,
    renderer: Renderer,
    task: Task,
    max_tokens: int,
    samples: int,
    seed: int,
) -> SampledEvaluation:
    """Answer every problem several times at temperature 1, as the policy itself would: avg@k.

    The way to examine a few hard problems, such as AIME's 30: in a single pass each is worth 3.3 points.
    """
    groups = rollout(
        sampler,
        problems,
        renderer=renderer,
        task=task,
        group_size=samples,
        max_tokens=max_tokens,
        seed=seed,
    )
    cut = [t.truncated for group in groups for t in group.trajectories]
    return SampledEvaluation(
        shares=tuple(sum(t.grade.correct for t in group.trajectories) / samples for group in groups),
        truncated=sum(cut) / len(cut),
    )


@dataclass(frozen=True)
class Reply:
    """What a model said when asked once."""

    text: str
    truncated: bool
    """Cut at its longest, not ended."""


def greedy_replies(
    sampler: SamplingClient, problems: Sequence[Problem], *, renderer: Renderer, max_tokens: int
) -> list[Reply]:
    """One greedy reply to each problem, cut at max_tokens."""
    greedy = SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=renderer.stop_tokens)
    return _replies(sampler, problems, renderer, [greedy] * len(problems))


def sampled_replies(
    sampler: SamplingClient, problems: Sequence[Problem], *, renderer: Renderer, max_tokens: int, seed: int
) -> list[Reply]:
    """One reply to each problem at temperature 1, cut at max_tokens."""
    params = [
        SamplingParams(max_tokens=max_tokens, stop=renderer.stop_tokens, seed=derive_seed(seed, index))
        for index in range(len(problems))
    ]
    return _replies(sampler, problems, renderer, params)


def _replies(
    sampler: SamplingClient, problems: Sequence[Problem], renderer: Renderer, params: Sequence[SamplingParams]
) -> list[Reply]:
    # All problems are in flight at once.
    pending = [
        sampler.sample(
            ModelInput.from_ints(renderer.generation_prompt(problem.messages)),
            num_samples=1,
            sampling_params=each,
        )
        for problem, each in zip(problems, params, strict=True)
    ]
    sequences = [response.result().sequences[0] for response in pending]
    return [
        Reply(renderer.parse(sequence.tokens).text, sequence.stop_reason == "length")
        for sequence in sequences
    ]


def t_95(freedom: int) -> float:
    """Two-sided 95% quantile of Student's t: how many standard errors an interval of few values reaches.

    From nine degrees of freedom on by the expansion in their inverse, to three decimals (Abramowitz and
    Stegun, 26.7.5).
    """
    if freedom <= len(T_95):
        return T_95[freedom - 1]
    z = Z_95
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Confidence interval of a proportion, honest near 0 and 1 where the normal one is not.

        (p + z^2/2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n)

    Raises:
        ValueError: no trials, or successes outside 0..trials.

    Source: Wilson 1927.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials have no interval")
    p = successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # At the ends the interval touches them; rounding must not say otherwise.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return low, high


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same problems."""

    gained: int
    """Problems that only the second answered correctly."""
    lost: int
    """Problems that only the first answered correctly."""
    difference: float
    """Accuracy of the second minus that of the first."""
    p_value: float
    """Two-sided exact sign test: how often chance alone splits the changed problems this unevenly."""


def compare_paired(first: Evaluation, second: Evaluation) -> PairedComparison:
    """Compare on what changed; far sharper than comparing two intervals.

    Raises:
        ValueError: they answered different numbers of problems.

    Source: McNemar 1947, in its exact binomial form.
    """
    pairs = list(zip(first.correct, second.correct, strict=True))
    gained = sum(not a and b for a, b in pairs)
    lost = sum(a and not b for a, b in pairs)
    changed = gained + lost
    tail = sum(comb(changed, k) for k in range(min(gained, lost) + 1)) / 2**changed
    return PairedComparison(gained, lost, (gained - lost) / len(pairs), min(1.0, 2 * tail))
