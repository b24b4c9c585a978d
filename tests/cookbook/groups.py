"""Groups made by hand, for tests of what is computed from them."""

from collections.abc import Sequence

import numpy as np

from cookbook.datums import Floats
from cookbook.renderers import Message
from cookbook.rollouts import Grade, Group, Problem, Trajectory

PROBLEM = Problem(messages=(Message(role="user", content="1 + 1 ="),), answer="2")


def make_trajectory(
    *,
    logprobs: Sequence[float],
    reward: float = 0.0,
    prompt_tokens: Sequence[int] = (5, 6),
    truncated: bool = False,
) -> Trajectory:
    """A completion of as many tokens as it has logprobs, with ids from 10 on."""
    return Trajectory(
        prompt_tokens=list(prompt_tokens),
        completion_tokens=list(range(10, 10 + len(logprobs))),
        logprobs=np.asarray(logprobs, dtype=np.float32),
        truncated=truncated,
        finished=not truncated,
        reply="",
        grade=Grade(reward=reward, correct=reward == 1.0),
    )


def make_group(*trajectories: Trajectory) -> Group:
    return Group(problem=PROBLEM, trajectories=trajectories)


class FixedScorer:
    """A scorer that has made up its mind: one list of logprobs per trajectory of a single group."""

    def __init__(self, *scores: Sequence[float]) -> None:
        self._scores = [np.asarray(s, dtype=np.float32) for s in scores]

    def score(self, groups: Sequence[Group]) -> list[list[Floats]]:
        assert len(groups) == 1
        return [self._scores]
