"""The variants that are compared: each one line in place of `reverse_kl(teacher)`, or a change of sizes.

To add one is a line here; the command, the table and the figure find it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cookbook.advantages import group_relative, reverse_kl
from cookbook.byte_spans import ByteSpanTeacher
from cookbook.controls import fixed_negative
from cookbook.entropy import entropy_aware, where_student_is_unsure
from cookbook.loop import TrainConfig, WatchedTeacher
from cookbook.mixing import RoutedTeachers, total
from cookbook.objectives import Objective
from cookbook.rollouts import Task
from cookbook.teachers import Teacher
from cookbook.top_k import bucket_tail, control_variate, generalised_tail, top_k_reverse_kl

PLAIN = "plain"
PLAIN_ON_TWO = "two tasks, one teacher"
ALTERNATIVES = 20
CLIP = 5.0
"""Nats per token."""
REWARD_KL = 0.1
"""Weight of the teacher beside a reward."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What there is to learn from."""

    teacher: Teacher
    """Of the students' base model, after supervised fine-tuning on the task."""
    told: Teacher
    """The base model as it is, after solved examples."""
    of_bytes: ByteSpanTeacher
    """A small model of another tokenizer, trained on the task."""
    both: RoutedTeachers
    """The teacher and one of the second task, each for its own problems."""
    task: Task
    two_tasks: Task


def on_task(parts: Parts) -> Task:
    """What most variants are about."""
    return parts.task


def as_it_is(config: TrainConfig) -> TrainConfig:
    """The sizes of plain distillation."""
    return config


def with_alternatives(config: TrainConfig) -> TrainConfig:
    """The student's likeliest tokens come with every sample."""
    return replace(config, alternatives=ALTERNATIVES)


def short(config: TrainConfig) -> TrainConfig:
    """Rollouts of two tokens, of which an answer has more."""
    return replace(config, rollout_tokens=2)


def growing(config: TrainConfig) -> TrainConfig:
    """Rollouts from one token to as many as an answer may have."""
    return replace(config, rollout_tokens=1, rollout_tokens_last=config.max_tokens)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One run."""

    learns: Callable[[Parts], Objective]
    """The line of the recipe."""
    sizes: Callable[[TrainConfig], TrainConfig] = as_it_is
    """Never the number of rollouts."""
    task: Callable[[Parts], Task] = on_task
    watched: Callable[[Parts], WatchedTeacher] = lambda parts: parts.teacher
    """Whose distance is recorded."""
    against: str = PLAIN
    """The variant that it is compared with."""


VARIANTS: Mapping[str, Variant] = {
    PLAIN: Variant(learns=lambda p: reverse_kl(p.teacher)),
    "control: fixed penalty": Variant(learns=lambda p: fixed_negative(p.teacher)),
    "clip": Variant(learns=lambda p: reverse_kl(p.teacher, clip=CLIP)),
    "discount 1": Variant(learns=lambda p: reverse_kl(p.teacher, discount=1.0)),
    "top-k": Variant(learns=lambda p: top_k_reverse_kl(p.teacher), sizes=with_alternatives),
    "top-k, tail as one": Variant(
        learns=lambda p: top_k_reverse_kl(p.teacher, tail=bucket_tail), sizes=with_alternatives
    ),
    "top-k, generalised": Variant(
        learns=lambda p: top_k_reverse_kl(p.teacher, tail=generalised_tail), sizes=with_alternatives
    ),
    "control variate": Variant(learns=lambda p: control_variate(p.teacher), sizes=with_alternatives),
    "entropy-aware": Variant(learns=lambda p: entropy_aware(p.teacher)),
    "unsure half": Variant(
        learns=lambda p: where_student_is_unsure(reverse_kl(p.teacher)), sizes=with_alternatives
    ),
    "reward and teacher": Variant(
        learns=lambda p: total(group_relative, reverse_kl(p.teacher, kl_coef=REWARD_KL, clip=CLIP))
    ),
    "short rollouts": Variant(learns=lambda p: reverse_kl(p.teacher), sizes=short),
    "growing rollouts": Variant(learns=lambda p: reverse_kl(p.teacher), sizes=growing),
    "a better prompt": Variant(learns=lambda p: reverse_kl(p.told), watched=lambda p: p.told),
    "another tokenizer": Variant(learns=lambda p: reverse_kl(p.of_bytes), watched=lambda p: p.of_bytes),
    PLAIN_ON_TWO: Variant(
        learns=lambda p: reverse_kl(p.teacher), task=lambda p: p.two_tasks, against=PLAIN_ON_TWO
    ),
    "two tasks, two teachers": Variant(
        learns=lambda p: reverse_kl(p.both),
        task=lambda p: p.two_tasks,
        watched=lambda p: p.both,
        against=PLAIN_ON_TWO,
    ),
}
"""By the names of their runs."""
