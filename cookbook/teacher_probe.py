"""Probing a teacher before a run depends on it: does it score tokens, and does it read prompts as it should?

A backend without prompt logprobs, or one that answers with nothing, makes distillation impossible.
A teacher in a layout that it was not trained on makes it worse than useless: it grades the layout.
Neither shows in a loss, so both are asked before step 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from cookbook.datums import Floats
from cookbook.renderers import RENDERERS, Message, Renderer, RendererError, Tokenizer
from cookbook.rollouts import Problem, Task
from cookbook.teachers import Teacher
from tinkerlite import CapabilityError

PROBED_PROBLEMS = 8
"""Training problems whose right answers a teacher scores before a run."""
LAYOUT_MATTERS = 0.1
"""Nats per token of right answers by which another layout must be better to be worth a word."""


@dataclass(frozen=True, kw_only=True)
class TeacherProbe:
    """What a teacher was found to do."""

    student_reads: str
    """The first problem's prompt, as the student reads it."""
    teacher_reads: str
    right_answers: float
    """Mean log p_teacher per token of the problems' right answers, in nats, read as `teacher_reads`."""
    in_other_layouts: Mapping[str, float]
    """The same for the layouts that the teacher was not asked to read."""

    def lines(self) -> list[str]:
        """What a person should see before the run: both prompts, and a warning if one is due."""
        lines = [
            f"student reads  {self.student_reads!r}",
            f"teacher reads  {self.teacher_reads!r}",
            f"teacher finds right answers at {self.right_answers:.2f} nats a token",
        ]
        name, other = max(self.in_other_layouts.items(), key=lambda item: item[1], default=("", -np.inf))
        if other > self.right_answers + LAYOUT_MATTERS:
            lines.append(
                f"warning: in the layout {name!r} it finds them at {other:.2f}, so it may be "
                f"the one it was trained on; in another it grades the layout. Try --teacher-renderer {name}"
            )
        return lines


def probe_teacher(
    teacher: Teacher,
    problems: Sequence[Problem],
    *,
    renderer: Renderer,
    layouts: Mapping[str, Renderer],
) -> TeacherProbe:
    """Let the teacher score the right answers of a few problems; its vocabulary is known to match by now.

    Args:
        teacher: as the run will ask it.
        problems: at least one.
        renderer: the student's.
        layouts: others that the teacher could read, by name.

    Raises:
        CapabilityError: its backend returns no logprobs, too few, or none that are logprobs.
        RendererError: its layout ends replies with another token than the student's.
    """
    own = [renderer.generation_prompt(problem.messages) for problem in problems]
    answers = [_answer(problem, prompt, renderer) for problem, prompt in zip(problems, own, strict=True)]
    _check_end(renderer, teacher.renderer)
    read = [teacher.prompt(problem, prompt) for problem, prompt in zip(problems, own, strict=True)]
    others: dict[str, float] = {}
    for name, layout in layouts.items():
        try:
            prompts = [layout.generation_prompt(problem.messages) for problem in problems]
        except RendererError:
            continue  # it cannot lay these problems out, so no one was trained on that
        if prompts != read:
            others[name] = _mean_logprob(teacher, prompts, answers)
    return TeacherProbe(
        student_reads=renderer.text(own[0]),
        teacher_reads=renderer.text(read[0]),
        right_answers=_mean_logprob(teacher, read, answers),
        in_other_layouts=others,
    )


def examine_teacher(
    teacher: Teacher, task: Task, renderer: Renderer, tokenizer: Tokenizer, student: Renderer | None = None
) -> TeacherProbe:
    """Probe a teacher on a few training problems, in its own layout and in all others that there are.

    `student` lays prompts out for a student with another tokenizer than `tokenizer`, which is the teacher's.
    """
    layouts: dict[str, Renderer] = {}
    for name, make in RENDERERS.items():
        with suppress(RendererError):  # not a layout of this tokenizer
            layouts[name] = make(tokenizer)
    problems = list(islice(task.training_problems(0), PROBED_PROBLEMS))
    probe = probe_teacher(teacher, problems, renderer=renderer, layouts=layouts)
    if student is None:
        return probe
    return replace(probe, student_reads=student.text(student.generation_prompt(problems[0].messages)))


def _check_end(student: Renderer, teacher: Renderer | None) -> None:
    if teacher is not None and student.stop_tokens[0] not in teacher.stop_tokens:
        ours, theirs = (each.text(each.stop_tokens[:1]) for each in (student, teacher))
        raise RendererError(
            f"the student ends a reply with {ours!r} and the teacher's layout with {theirs!r}: every ending "
            "would be graded as a mistake. Give both a layout with the same end"
        )


def _answer(problem: Problem, prompt: Sequence[int], renderer: Renderer) -> list[int]:
    """The right answer as the student would write it, with the token that ends it."""
    reply = Message(role="assistant", content=problem.answer)
    return renderer.training_example([*problem.messages, reply]).tokens[len(prompt) :]


def _mean_logprob(teacher: Teacher, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> float:
    scores = teacher.score_after(list(zip(prompts, answers, strict=True)))
    for answer, of_answer in zip(answers, scores, strict=True):
        _check_logprobs(of_answer, len(answer))
    return float(np.mean(np.concatenate(scores)))


def _check_logprobs(scores: Floats, tokens: int) -> None:
    if len(scores) != tokens:
        raise CapabilityError(f"the teacher's backend returned {len(scores)} logprobs for {tokens} tokens")
    # Rounding may lift a certain token's logprob above 0, by very little.
    wrong = scores[~np.isfinite(scores) | (scores > 1e-3)]
    if len(wrong):
        raise CapabilityError(
            f"the teacher's backend returned {wrong[0]} as the logprob of a token; "
            "logprobs are finite and at most 0"
        )
