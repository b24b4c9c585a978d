"""Teachers: score the student's tokens under another model's weights.

A teacher only reads: one forward pass per completion, no sampling and no gradient, so any sampling
client that scores prompts is one. Knows nothing about advantages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cookbook.contexts import Context
from cookbook.datums import Floats
from cookbook.renderers import Renderer, Tokenizer, token_map_hash
from cookbook.rollouts import Group, Problem, Trajectory, alternatives_of
from cookbook.work import Work, scoring, total
from tinkerlite import APIFuture, CapabilityError, SamplingClient
from tinkerlite.types import (
    EMPTY_SLOT_LOGPROB,
    ModelInput,
    SampleResponse,
    SamplingParams,
    TensorData,
    TopkLogprobs,
)


class VocabularyMismatch(ValueError):
    """Teacher and student give different meanings to token ids."""


@dataclass(frozen=True, eq=False)
class _Opinion:
    """What a teacher thinks of one completion."""

    logprobs: Floats
    """(T,) log p of each completion token."""
    alternatives: Floats | None
    """(T, k) log p of the student's alternatives, if it recorded any."""


class Teacher:
    """A model whose opinion of the student's tokens is asked.

    Args:
        sampler: the teacher's weights.
        student_tokenizer: the ids that will be scored are this tokenizer's.
        renderer: how the *teacher* wants its prompts. None: it reads the student's own prompt.
            A teacher that reads a layout it was not trained on grades the layout, not the answer.
        context: what the teacher is told instead of the problem alone (see `contexts`).

    Raises:
        VocabularyMismatch: its tokenizer maps some token to another id.
        ValueError: a context without a renderer to lay it out.
    """

    def __init__(
        self,
        sampler: SamplingClient,
        student_tokenizer: Tokenizer,
        renderer: Renderer | None = None,
        context: Context | None = None,
    ) -> None:
        check_same_vocabulary(student_tokenizer, sampler.get_tokenizer())
        if context is not None and renderer is None:
            raise ValueError("a teacher with a context of its own needs a renderer to lay it out")
        self._sampler = sampler
        self._student_tokenizer = student_tokenizer
        self._renderer = renderer
        self._context = context
        self.work = Work()
        """What it has scored so far, remembered batches not counted again."""
        self._asked: dict[Group, list[APIFuture[SampleResponse]]] = {}  # groups compare by identity
        self._known: dict[Group, list[_Opinion]] = {}

    @property
    def renderer(self) -> Renderer | None:
        """Its own layout of prompts; None where it reads what the student reads."""
        return self._renderer

    def reading(self, context: Context, renderer: Renderer) -> Teacher:
        """The same weights, told something else: a teacher that knows more than the student."""
        return Teacher(self._sampler, self._student_tokenizer, renderer, context)

    def start(self, group: Group) -> None:
        """Ask about a group now, so that `score` finds the answer, or less to wait for."""
        if group not in self._asked and group not in self._known:
            prompt = self.prompt(group.problem, group.trajectories[0].prompt_tokens)
            self._asked[group] = [
                self._ask(prompt, t.completion_tokens, _alternatives_as_targets(len(prompt), t))
                for t in group.trajectories
            ]

    def score(self, groups: Sequence[Group]) -> list[list[Floats]]:
        """log p_teacher of each completion token, untempered, in nats: one (T,) array per trajectory.

        The last batch is remembered, so that training on the scores and reporting the KL cost
        one pass together.

        Raises:
            CapabilityError: the backend returned no logprob for a completion token.
        """
        return [[opinion.logprobs for opinion in of_group] for of_group in self._opinions(groups)]

    def score_after(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Floats]:
        """log p_teacher of each completion token, for (prompt, completion) pairs as they are.

        Raises:
            CapabilityError: the backend returned no logprob for a completion token.
        """
        # All are in flight at once.
        pending = [self._ask(prompt, completion) for prompt, completion in pairs]
        return [
            completion_logprobs(future.result(), len(prompt))
            for future, (prompt, _) in zip(pending, pairs, strict=True)
        ]

    def score_alternatives(self, groups: Sequence[Group]) -> list[list[Floats]]:
        """log p_teacher of the student's alternatives: one (T, k) array per trajectory, in the same pass.

        Cells of unused slots hold 0.

        Raises:
            ValueError: the rollouts recorded none.
            CapabilityError: the backend does not score chosen tokens.
        """
        return [
            [_scored(*pair) for pair in zip(of_group, group.trajectories, strict=True)]
            for of_group, group in zip(self._opinions(groups), groups, strict=True)
        ]

    def top_k(self, groups: Sequence[Group], k: int) -> list[list[TopkLogprobs]]:
        """The teacher's own k likeliest tokens at each position: (T, k) per trajectory. A pass of its own."""
        prompts = [self.prompt(group.problem, group.trajectories[0].prompt_tokens) for group in groups]
        self.work += total(map(self._work, groups))
        pending = [
            [
                self._sampler.sample(
                    ModelInput.from_ints(prompt + trajectory.completion_tokens),
                    num_samples=1,
                    sampling_params=SamplingParams(max_tokens=1),
                    include_prompt_logprobs=True,
                    topk_prompt_logprobs=k,
                    prompt_logprobs_last_n=len(trajectory.completion_tokens),
                )
                for trajectory in group.trajectories
            ]
            for group, prompt in zip(groups, prompts, strict=True)
        ]
        return [
            [_last_rows(future.result(), t) for future, t in zip(futures, group.trajectories, strict=True)]
            for futures, group in zip(pending, groups, strict=True)
        ]

    def prompt(self, problem: Problem, student_prompt: list[int]) -> list[int]:
        """The tokens that this teacher reads before a completion of the problem."""
        if self._renderer is None:
            return student_prompt
        told = problem.messages if self._context is None else self._context(problem)
        return self._renderer.generation_prompt(told)

    def _ask(
        self, prompt: list[int], completion: list[int], targets: TensorData | None = None
    ) -> APIFuture[SampleResponse]:
        return self._sampler.sample(
            ModelInput.from_ints(prompt + completion),
            num_samples=1,
            sampling_params=SamplingParams(max_tokens=1),
            include_prompt_logprobs=True,
            target_prompt_logprobs=targets,
        )

    def _opinions(self, groups: Sequence[Group]) -> list[list[_Opinion]]:
        # All completions of all groups are in flight before any is awaited.
        for group in groups:
            self.start(group)
        # Counted for whoever asks for the scores, whenever they were begun.
        self.work += total(self._work(group) for group in groups if group not in self._known)
        self._known = {group: self._known.get(group) or self._answers(group) for group in groups}
        self._asked.clear()
        return list(self._known.values())

    def _work(self, group: Group) -> Work:
        prompt = self.prompt(group.problem, group.trajectories[0].prompt_tokens)
        return total(scoring(len(prompt) + len(t.completion_tokens)) for t in group.trajectories)

    def _answers(self, group: Group) -> list[_Opinion]:
        prompt_length = len(self.prompt(group.problem, group.trajectories[0].prompt_tokens))
        return [
            _opinion(future.result(), prompt_length, trajectory)
            for future, trajectory in zip(self._asked[group], group.trajectories, strict=True)
        ]


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
        "Choose a teacher with the student's tokenizer, or compare the two by spans of bytes: "
        "byte_spans.ByteSpanTeacher, or --byte-spans."
    )


def _opinion(response: SampleResponse, prompt_length: int, trajectory: Trajectory) -> _Opinion:
    alternatives: Floats | None = None
    if trajectory.alternatives is not None:
        assert response.target_prompt_logprobs is not None  # the client checks that what was asked came
        alternatives = response.target_prompt_logprobs.to_numpy()[prompt_length - 1 :]
    return _Opinion(completion_logprobs(response, prompt_length), alternatives)


def completion_logprobs(response: SampleResponse, prompt_length: int) -> Floats:
    """The scores of what follows the prompt.

    Raises:
        CapabilityError: one is missing.
    """
    assert response.prompt_logprobs_np is not None  # the client checks that what was asked came
    scores = response.prompt_logprobs_np[prompt_length:]
    if np.isnan(scores).any():
        raise CapabilityError(
            "the teacher's backend returned no logprob for a completion token; "
            "distillation needs one that scores every prompt token"
        )
    return scores


def _alternatives_as_targets(prompt_length: int, trajectory: Trajectory) -> TensorData | None:
    """(P - 1, k) ids to score along prompt and completion: none in the prompt, nor in unused slots."""
    if trajectory.alternatives is None:
        return None
    tokens, logprobs = trajectory.alternatives.token_ids, trajectory.alternatives.logprobs
    nothing = np.full((prompt_length - 1, tokens.shape[1]), -1, dtype=np.int64)
    asked = np.where(logprobs > EMPTY_SLOT_LOGPROB, tokens, -1)
    return TensorData.from_numpy(np.concatenate([nothing, asked])).to_csr(pad_value=-1)


def _scored(opinion: _Opinion, trajectory: Trajectory) -> Floats:
    alternatives_of(trajectory)  # raises where there are none
    assert opinion.alternatives is not None
    return opinion.alternatives


def _last_rows(response: SampleResponse, trajectory: Trajectory) -> TopkLogprobs:
    assert response.topk_prompt_logprobs_np is not None  # the client checks that what was asked came
    rows = slice(-len(trajectory.completion_tokens), None)
    topk = response.topk_prompt_logprobs_np
    return TopkLogprobs(topk.token_ids[rows], topk.logprobs[rows])
