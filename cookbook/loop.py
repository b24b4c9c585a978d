"""The training loop that every on-policy recipe shares.

Sample from the student, grade, turn grades into advantages, one policy-gradient step; measure
everything on the way. What makes it RL or distillation is the `advantages` function it is given.
Knows nothing about flags, files or terminals (`runs`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from cookbook.advantages import Scorer
from cookbook.datums import completion_part
from cookbook.diagnostics import (
    advantage_figures,
    agreement_figures,
    kl_figures,
    rollout_figures,
    staleness_figures,
)
from cookbook.evaluation import Evaluation, SampledEvaluation, evaluate, evaluate_sampled
from cookbook.guards import RunStopped, sign_of_collapse
from cookbook.metrics import Row, without_not_finite
from cookbook.objectives import Credit, Objective, training_data
from cookbook.renderers import Renderer
from cookbook.rollouts import Group, Task, derive_seed, rollout
from cookbook.work import Work, as_row, sampling_of, training_of
from tinkerlite import SamplingClient, TrainingClient
from tinkerlite.types import AdamParams, Datum, ForwardBackwardOutput, OptimStepResponse

T = TypeVar("T")

Record = Callable[[Row], None]
"""Takes the row of a finished step."""
BeforeStep = Callable[[int], None]
"""Takes the number of updates done, before the step that adds one: the moment for a checkpoint."""


def no_checkpoint(step: int) -> None:
    """Saves nothing."""


Measure = Callable[[SamplingClient], Row]
"""Figures of the weights behind a sampler."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """An on-policy run, besides its task and its advantages."""

    steps: int = 25
    """Updates. Step k in the metrics is the student after k of them."""
    prompts_per_step: int = 8
    """Problems sampled from at each step."""
    group_size: int = 8
    """Completions per problem; group_relative uses their mean reward as the baseline."""
    max_tokens: int = 16
    """Longest completion, in tokens. A longer one is cut, and still scored and trained."""
    rollout_tokens: int = 0
    """Longest completion of the first step's rollouts, where training needs less than max_tokens: a
    teacher grades beginnings as well as wholes. 0: max_tokens."""
    rollout_tokens_last: int = 0
    """Longest completion of the last step's rollouts; the steps between lead there in a straight line.
    0: as long as the first step's."""
    alternatives: int = 0
    """Likeliest tokens to record at each sampled position, for objectives that use them (`top_k`)."""
    temperature: float = 1.0
    """Of the rollouts. Logprobs are untempered, so only at 1 is the mean difference a KL."""
    learning_rate: float = 1e-3
    """Of Adam at the first step. LoRA wants about ten times that of full fine-tuning."""
    decay_to: float = 0.0
    """Share of the learning rate that the steps lead to, in a straight line; 1 keeps it constant."""
    warmup_steps: int = 0
    """First steps, in which the learning rate rises to what it would be: Adam's are as large as any,
    however little their gradients say."""
    grad_clip_norm: float = 0.0
    """Largest norm of a step's gradient, which is of the sum over its tokens; 0 leaves it as it is."""
    evaluate_every: int = 5
    """Steps between evaluations on held-out problems; the first and the last step always count."""
    held_out: int = 200
    """Problems in an evaluation."""
    kl_every: int = 1
    """Steps between measurements of the KL to the teacher, which cost a pass unless trained on."""
    max_truncated_fraction: float = 1.0
    """Stop when more of a step's completions than this are cut; at 1, only when they used to end."""
    stop_when_collapsed: bool = True
    """Stop with a reason at signs of collapse (`guards`); otherwise they are only recorded."""
    seed: int = 0
    """Of problems, rollouts and the adapter's start."""

    def __post_init__(self) -> None:
        check_at_least(1, self, ("prompts_per_step", "group_size", "max_tokens", *MEASURING, "kl_every"))
        check_at_least(0, self, ("rollout_tokens", "rollout_tokens_last", "alternatives", *SCHEDULE))
        check_at_least(0, self, ("temperature", "max_truncated_fraction"))


MEASURING = ("evaluate_every", "held_out")
SCHEDULE = ("steps", "learning_rate", "decay_to", "warmup_steps", "grad_clip_norm", "seed")
"""Fields that every configuration has."""


def check_at_least(least: int, config: object, names: Sequence[str]) -> None:
    """Raises ValueError: a field is less, or no number."""
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"{name} is {value}; it must be at least {least}")


class WatchedTeacher(Scorer, Protocol):
    """A scorer that the loop measures against; `teachers.Teacher` is one."""

    @property
    def work(self) -> Work:
        """What it has scored so far."""
        ...

    def start(self, group: Group) -> None:
        """Begin with a group that `score` will be asked about, without waiting for it."""
        ...


def train(
    config: TrainConfig,
    student: TrainingClient,
    task: Task,
    *,
    renderer: Renderer,
    advantages: Objective,
    teacher: WatchedTeacher | None = None,
    record: Record,
    start: Evaluation | None = None,
    measure: Measure | None = None,
    earlier: Sequence[Row] = (),
    checkpoint: BeforeStep = no_checkpoint,
) -> list[Row]:
    """Train the student on its own rollouts; returns the rows of all steps, steps + 1 of them.

    Args:
        config: sizes and rates.
        student: the weights to train; whatever they are now is step 0.
        task: problems and grader.
        renderer: lays prompts out for the student.
        advantages: what to learn from a batch of rollouts: advantages, or any other objective. The
            only thing RL and OPD disagree on.
        teacher: measured against at every `kl_every` steps. Measuring changes nothing that trains. What
            `advantages` lets it score is counted as work.
        record: called with each row as soon as it is known.
        start: the evaluation of step 0, if it has been made already; of no use to a run that goes on.
        measure: figures of an evaluated step, in place of accuracy on the task's held-out problems.
        earlier: rows of the steps that are done, if this goes on with a run; the student has been
            through them. They are not recorded again.
        checkpoint: called before every step that is made here.

    Raises:
        RunStopped: see `stop_when_collapsed` and `max_truncated_fraction`. The last row is recorded.
        ValueError: the task has fewer problems than `steps + 1` times `prompts_per_step`.
    """
    rows = list(earlier)
    problems = islice(task.training_problems(config.seed), len(rows) * config.prompts_per_step, None)
    measure = measure or accuracy_measure(
        task, renderer, config.held_out, config.max_tokens, None if earlier else start
    )
    for step in range(len(rows), config.steps + 1):
        checkpoint(step)
        is_last = step == config.steps
        row: dict[str, Any] = {"step": step}
        measured = teacher is not None and (step % config.kl_every == 0 or is_last)
        asked = take(problems, config.prompts_per_step, f"problems of task {task.name!r}", step)
        clock = _Clock()
        with clock.phase("sampling"):
            sampler = student.save_weights_and_get_sampling_client()
            groups = rollout(
                sampler,
                asked,
                renderer=renderer,
                task=task,
                group_size=config.group_size,
                max_tokens=completion_limit(config, step),
                temperature=config.temperature,
                seed=derive_seed(config.seed, step),
                policy_version=step,
                alternatives=config.alternatives,
                # Finished groups are scored while others are still being sampled.
                on_group=teacher.start if teacher is not None and measured else None,
            )
        row |= rollout_figures(groups)
        if completion_limit(config, step) < config.max_tokens:
            row["short_on_purpose"] = True
        if not is_last:
            scored_before = teacher.work if teacher else Work()
            with clock.phase("advantages"):
                values = advantages(groups)
            scored = teacher.work - scored_before if teacher else Work()
            phases = {"sampling": sampling_of(groups), "scoring": scored, "training": training_of(groups)}
            row["work"] = as_row(phases)
            with clock.phase("training"):
                row |= advantage_figures(values)
                row |= staleness_figures(groups, step)
                row |= _update(student, groups, values, adam_params(config, step))
            row["tokens_per_second"] = row["completion_tokens"] / sum(clock.seconds.values())
        row["seconds"] = dict(clock.seconds)
        if teacher is not None and measured:
            row |= kl_figures(groups, teacher.score(groups))
        if step % config.evaluate_every == 0 or is_last:
            row |= measure(sampler)
        finish_row(row, rows, record, stop=config.stop_when_collapsed, reason=_too_many_cut(row, config))
    return rows


def take(stream: Iterator[T], count: int, what: str, step: int) -> list[T]:
    """The next `count` of a stream of `what`.

    Raises:
        ValueError: it has ended, which the stream of a step's data may not.
    """
    taken = list(islice(stream, count))
    if len(taken) < count:
        raise ValueError(
            f"step {step} needs {count} {what}, and there are {len(taken)} left; train for fewer steps, or "
            "let the stream begin again"
        )
    return taken


def finish_row(
    row: dict[str, Any], rows: list[Row], record: Record, *, stop: bool, reason: str | None = None
) -> None:
    """Record a row after those before it: with its sign of collapse, if any, as `collapse` and, if the run
    ends here, with why as `stopped`.

    Raises:
        RunStopped: there is a sign, and `stop` says to; or there is another `reason`.
    """
    sign = sign_of_collapse([*rows, row])
    if sign:
        row = without_not_finite(row) | {"collapse": sign}
        reason = sign if stop else reason
    if reason:
        row["stopped"] = reason
    record(row)
    rows.append(row)
    if reason:
        raise RunStopped(f"step {row['step']}: {reason}.")


def evaluation_figures(evaluation: Evaluation | SampledEvaluation) -> Row:
    """Accuracy, its 95% interval, and the share of replies that were cut, as every recipe records them."""
    return {
        "accuracy": evaluation.accuracy,
        "accuracy_interval": list(evaluation.interval),
        "replies_truncated": evaluation.truncated,
    }


def accuracy_measure(
    task: Task, renderer: Renderer, count: int, max_tokens: int, start: Evaluation | None = None
) -> Measure:
    """Accuracy on the first `count` held-out problems; `start`, if given, answers the first time."""
    problems = task.held_out(count)

    def measure(sampler: SamplingClient) -> Row:
        found = evaluate(sampler, problems, renderer=renderer, task=task, max_tokens=max_tokens)
        return evaluation_figures(found)

    return known_at_first(measure, evaluation_figures(start)) if start else measure


def known_at_first(measure: Measure, figures: Row) -> Measure:
    """The same, but the first answer is known: a run begins with weights that have been measured."""
    known = [figures]

    def measured(sampler: SamplingClient) -> Row:
        return known.pop() if known else measure(sampler)

    return measured


def sampled_accuracy_measure(
    task: Task, renderer: Renderer, count: int, max_tokens: int, *, samples: int, seed: int
) -> Measure:
    """avg@k on the first `count` held-out problems, at temperature 1."""
    problems = task.held_out(count)

    def measure(sampler: SamplingClient) -> Row:
        found = evaluate_sampled(
            sampler,
            problems,
            renderer=renderer,
            task=task,
            max_tokens=max_tokens,
            samples=samples,
            seed=seed,
        )
        return evaluation_figures(found)

    return measure


class Schedule(Protocol):
    """What `adam_params` reads of a configuration."""

    @property
    def steps(self) -> int: ...  # noqa: D102 - as in TrainConfig
    @property
    def learning_rate(self) -> float: ...  # noqa: D102
    @property
    def decay_to(self) -> float: ...  # noqa: D102
    @property
    def warmup_steps(self) -> int: ...  # noqa: D102
    @property
    def grad_clip_norm(self) -> float: ...  # noqa: D102


def adam_params(config: Schedule, step: int) -> AdamParams:
    """Of the update after `step` others: linear from `learning_rate` to `decay_to` of it, and up to that
    line over the first `warmup_steps`."""
    rate = config.learning_rate * (1 - (1 - config.decay_to) * step / config.steps)
    if step < config.warmup_steps:
        rate *= (step + 1) / (config.warmup_steps + 1)
    return AdamParams(learning_rate=rate, grad_clip_norm=config.grad_clip_norm)


def completion_limit(config: TrainConfig, step: int) -> int:
    """The longest completion of a step's rollouts, in tokens."""
    first = config.rollout_tokens or config.max_tokens
    last = config.rollout_tokens_last or first
    return round(first + (last - first) * step / max(config.steps, 1))


def submit_update(
    student: TrainingClient, data: list[Datum], loss_fn: str, optimizer: AdamParams
) -> tuple[ForwardBackwardOutput, OptimStepResponse]:
    """One gradient and one Adam step on it."""
    # Both requests go out before either is awaited, so the server can run them back to back.
    update = student.forward_backward(data, loss_fn)
    stepped = student.optim_step(optimizer)
    return update.result(), stepped.result()


def _update(
    student: TrainingClient,
    groups: Sequence[Group],
    credits: Sequence[Sequence[Credit]],
    optimizer: AdamParams,
) -> Row:
    trajectories = [t for group in groups for t in group.trajectories]
    output, stepped = submit_update(student, *training_data(groups, credits), optimizer)
    logprobs = [
        completion_part(fields["logprobs"].to_numpy(), len(t.prompt_tokens))
        for fields, t in zip(output.loss_fn_outputs, trajectories, strict=True)
    ]
    # Of several targets a position, the sampled token is the first.
    trainer_logprobs = [values if values.ndim == 1 else values[:, 0] for values in logprobs]
    return {
        "learning_rate": optimizer.learning_rate,
        "loss": output.metrics["loss:sum"],
        **agreement_figures(groups, trainer_logprobs),
        **{f"optimizer_{name}": value for name, value in (stepped.metrics or {}).items()},
    }


def _too_many_cut(row: Row, config: TrainConfig) -> str | None:
    fraction, limit = row["truncated_fraction"], config.max_truncated_fraction
    if fraction <= limit or row.get("short_on_purpose"):
        return None
    return (
        f"{fraction:.0%} of the completions were cut at max_tokens={config.max_tokens}, more than "
        f"max_truncated_fraction={limit:.0%}. Raise one of the two, or check that the prompt's layout lets "
        "the model end its turn"
    )


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Generator[None, None, None]:
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started
