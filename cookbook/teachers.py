"""Teachers: score the student's tokens under another model's weights.

A teacher only reads: one forward pass per completion, no sampling and no gradient, so any sampling
client that offers `compute_logprobs` is one. Knows nothing about advantages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cookbook.datums import Floats
from cookbook.renderers import Renderer, Tokenizer, token_map_hash
from cookbook.rollouts import Group, Problem
from cookbook.work import Work, scoring, total
from tinkerlite import CapabilityError, SamplingClient
from tinkerlite.types import ModelInput


class VocabularyMismatch(ValueError):
    """Teacher and student give different meanings to token ids."""


class Teacher:
    """A model whose opinion of the student's tokens is asked.

    Args:
        sampler: the teacher's weights.
        student_tokenizer: the ids that will be scored are this tokenizer's.
        renderer: how the *teacher* wants its prompts. None: it reads the student's own prompt.
            A teacher that reads a layout it was not trained on grades the layout, not the answer.

    Raises:
        VocabularyMismatch: its tokenizer maps some token to another id.
    """

    def __init__(
        self, sampler: SamplingClient, student_tokenizer: Tokenizer, renderer: Renderer | None = None
    ) -> None:
        check_same_vocabulary(student_tokenizer, sampler.get_tokenizer())
        self._sampler = sampler
        self._renderer = renderer
        self.work = Work()
        """What it has been asked to score so far, remembered batches not counted again."""
        self._scored: list[Group] = []
        self._scores: list[list[Floats]] = []

    def score(self, groups: Sequence[Group]) -> list[list[Floats]]:
        """log p_teacher of each completion token, untempered, in nats: one (T,) array per trajectory.

        The last batch is remembered, so that training on the scores and reporting the KL cost
        one pass together.

        Raises:
            CapabilityError: the backend returned no logprob for a completion token.
        """
        if self._scored != list(groups):  # groups compare by identity
            self._scores = self._compute(groups)
            self._scored = list(groups)
        return self._scores

    def score_after(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Floats]:
        """log p_teacher of each completion token, for (prompt, completion) pairs as they are.

        Raises:
            CapabilityError: the backend returned no logprob for a completion token.
        """
        # All are in flight at once.
        pending = [
            self._sampler.compute_logprobs(ModelInput.from_ints(prompt + completion))
            for prompt, completion in pairs
        ]
        return [
            _of_completion(future.result(), len(prompt))
            for future, (prompt, _) in zip(pending, pairs, strict=True)
        ]

    def prompt(self, problem: Problem, student_prompt: list[int]) -> list[int]:
        """The tokens that this teacher reads before a completion of the problem."""
        return (
            student_prompt if self._renderer is None else self._renderer.generation_prompt(problem.messages)
        )

    def _compute(self, groups: Sequence[Group]) -> list[list[Floats]]:
        prompts = [self.prompt(group.problem, group.trajectories[0].prompt_tokens) for group in groups]
        self.work += total(
            scoring(len(prompt) + len(trajectory.completion_tokens))
            for group, prompt in zip(groups, prompts, strict=True)
            for trajectory in group.trajectories
        )
        scores = iter(
            self.score_after(
                [
                    (prompt, trajectory.completion_tokens)
                    for group, prompt in zip(groups, prompts, strict=True)
                    for trajectory in group.trajectories
                ]
            )
        )
        return [[next(scores) for _ in group.trajectories] for group in groups]


def check_same_vocabulary(student: Tokenizer, teacher: Tokenizer) -> None:
    """Compare token-to-id maps, not sizes.

    Raises:
        VocabularyMismatch: naming a token that differs.
    """
    if token_map_hash(student) == token_map_hash(teacher):
        return
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    token = next(t for t in sorted(ours.keys() | theirs.keys()) if ours.get(t) != theirs.get(t))
    raise VocabularyMismatch(
        f"token {token!r} is id {ours.get(token)} for the student and {theirs.get(token)} for the teacher: "
        "the teacher would grade other words than the student wrote. "
        "Choose a teacher with the student's tokenizer."
    )


def _of_completion(logprobs: Sequence[float | None], prompt_length: int) -> Floats:
    scores = logprobs[prompt_length:]
    if any(score is None for score in scores):
        raise CapabilityError(
            "the teacher's backend returned no logprob for a completion token; "
            "distillation needs one that scores every prompt token"
        )
    return np.asarray(scores, dtype=np.float32)
