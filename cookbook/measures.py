"""Measures: what a model knows, how well it follows instructions, how far it is from another model.

Each makes a `loop.Measure`; `together` joins them. Knows nothing about training.
"""

from __future__ import annotations

from collections.abc import Sequence

from cookbook.diagnostics import kl_figures
from cookbook.evaluation import evaluate, greedy_replies, sampled_replies
from cookbook.instructions.scores import score
from cookbook.instructions.task import instructions_of
from cookbook.loop import Measure
from cookbook.metrics import Row
from cookbook.renderers import Renderer
from cookbook.rollouts import Problem, Task, rollout
from cookbook.teachers import Teacher
from tinkerlite import SamplingClient


def behaviour_measure(
    problems: Sequence[Problem], *, renderer: Renderer, max_tokens: int, seed: int | None = None
) -> Measure:
    """Replies to prompts with instructions, scored as IFEval does; `behaviour` is its first figure.

    Greedy without a seed; with one, drawn at temperature 1, as the policy itself would reply. A reply that is
    cut at `max_tokens` is scored as far as it goes; how many are is among the figures.
    """
    asked = [instructions_of(problem) for problem in problems]

    def measure(sampler: SamplingClient) -> Row:
        replies = (
            greedy_replies(sampler, problems, renderer=renderer, max_tokens=max_tokens)
            if seed is None
            else sampled_replies(sampler, problems, renderer=renderer, max_tokens=max_tokens, seed=seed)
        )
        scores = score(asked, [reply.text for reply in replies])
        return {
            "behaviour": scores.prompt_strict,
            "behaviour_loose": scores.prompt_loose,
            "instructions_strict": scores.instruction_strict,
            "instructions_loose": scores.instruction_loose,
            "behaviour_by_kind": scores.by_kind,
            "behaviour_truncated": sum(reply.truncated for reply in replies) / len(replies),
        }

    return measure


def knowledge_measure(
    task: Task, problems: Sequence[Problem], *, renderer: Renderer, max_tokens: int, name: str = "knowledge"
) -> Measure:
    """Share of questions answered correctly, greedily, under a name."""

    def measure(sampler: SamplingClient) -> Row:
        found = evaluate(sampler, problems, renderer=renderer, task=task, max_tokens=max_tokens)
        return {name: found.accuracy}

    return measure


def kl_measure(
    teacher: Teacher,
    task: Task,
    *,
    prompts: int,
    renderer: Renderer,
    max_tokens: int,
    seed: int,
    name: str = "kl_to_start",
) -> Measure:
    """Reverse KL to a teacher in nats per token, on fresh replies to a task's held-out prompts."""
    problems = task.held_out(prompts)

    def measure(sampler: SamplingClient) -> Row:
        groups = rollout(
            sampler, problems, renderer=renderer, task=task, group_size=1, max_tokens=max_tokens, seed=seed
        )
        return {name: kl_figures(groups, teacher.score(groups))["reverse_kl"]}

    return measure


def together(*measures: Measure) -> Measure:
    """The figures of all of them; no two may share a name."""

    def measure(sampler: SamplingClient) -> Row:
        row: dict[str, object] = {}
        for each in measures:
            figures = each(sampler)
            if row.keys() & figures.keys():
                raise ValueError(f"two measures give the figures {sorted(row.keys() & figures.keys())}")
            row |= figures
        return row

    return measure
