"""The supervised loop: learn the tasks' own answers, or examples from elsewhere, token by token.

Not on-policy: the tokens come from the task and not from the student. It shares rendering, datums
and evaluation with `loop`, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cookbook.datums import supervised_datum
from cookbook.evaluation import Evaluation
from cookbook.loop import (
    MEASURING,
    SCHEDULE,
    BeforeStep,
    Measure,
    Record,
    accuracy_measure,
    adam_params,
    check_at_least,
    finish_row,
    no_checkpoint,
    submit_update,
    take,
)
from cookbook.metrics import Row
from cookbook.renderers import Message, RenderedExample, Renderer
from cookbook.rollouts import Problem, Task
from cookbook.work import Work, as_row, sampling, total, training
from tinkerlite import TrainingClient
from tinkerlite.types import AdamParams


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """A supervised run, besides its task."""

    steps: int = 15
    """Updates. Step k in the metrics is the student after k of them."""
    batch_size: int = 32
    """Examples in an update."""
    learning_rate: float = 1e-3
    """Of Adam at the first step. LoRA wants about ten times that of full fine-tuning."""
    decay_to: float = 0.0
    """Share of the learning rate that the steps lead to, in a straight line; 1 keeps it constant."""
    warmup_steps: int = 0
    """First steps, in which the learning rate rises to what it would be."""
    grad_clip_norm: float = 0.0
    """Largest norm of a step's gradient, which is of the sum over its tokens; 0 leaves it as it is."""
    evaluate_every: int = 5
    """Steps between evaluations on held-out problems; the first and the last step always count."""
    held_out: int = 200
    """Problems in an evaluation."""
    max_tokens: int = 16
    """Longest completion in an evaluation, in tokens."""
    stop_when_collapsed: bool = True
    """Stop with a reason at signs of collapse (`guards`); otherwise they are only recorded."""
    seed: int = 0
    """Of problems and the adapter's start."""

    def __post_init__(self) -> None:
        check_at_least(1, self, ("batch_size", "max_tokens", *MEASURING))
        check_at_least(0, self, SCHEDULE)


def train_supervised(
    config: SupervisedConfig,
    student: TrainingClient,
    task: Task,
    *,
    renderer: Renderer,
    record: Record,
    start: Evaluation | None = None,
    earlier: Sequence[Row] = (),
    checkpoint: BeforeStep = no_checkpoint,
) -> list[Row]:
    """Train the student on the task's answers; returns the rows of all steps, steps + 1 of them.

    `start` is the evaluation of step 0, if it has been made already; `earlier` and `checkpoint` are
    those of `loop.train`.

    Raises:
        RunStopped: see `stop_when_collapsed`. The last row is recorded.
    """
    problems = task.training_problems(config.seed)
    return train_on_examples(
        config,
        student,
        (renderer.training_example(with_answer(problem)) for problem in problems),
        measure=accuracy_measure(
            task, renderer, config.held_out, config.max_tokens, None if earlier else start
        ),
        record=record,
        earlier=earlier,
        checkpoint=checkpoint,
    )


def train_on_examples(
    config: SupervisedConfig,
    student: TrainingClient,
    examples: Iterator[RenderedExample],
    *,
    measure: Measure,
    record: Record,
    earlier: Sequence[Row] = (),
    checkpoint: BeforeStep = no_checkpoint,
) -> list[Row]:
    """Train the student on examples from anywhere; returns the rows of all steps, steps + 1 of them.

    Args:
        config: sizes and rates. The examples decide what `seed` would.
        student: the weights to train; whatever they are now is step 0.
        examples: an endless stream, or at least `steps * batch_size` of them, from the first step's on.
        measure: figures of an evaluated step.
        record: called with each row as soon as it is known.
        earlier: rows of the steps that are done; see `loop.train`.
        checkpoint: called before every step that is made here.

    Raises:
        RunStopped: see `stop_when_collapsed`. The last row is recorded.
        ValueError: the examples have ended, or no token of a batch is to be trained.
    """
    rows = list(earlier)
    examples = islice(examples, len(rows) * config.batch_size, None)
    for step in range(len(rows), config.steps + 1):
        checkpoint(step)
        is_last = step == config.steps
        row: dict[str, Any] = {"step": step}
        if step % config.evaluate_every == 0 or is_last:
            row |= measure(student.save_weights_and_get_sampling_client())
        if not is_last:
            batch = take(examples, config.batch_size, "examples", step)
            row |= _update(student, batch, adam_params(config, step))
        finish_row(row, rows, record, stop=config.stop_when_collapsed)
    return rows


def _update(student: TrainingClient, examples: list[RenderedExample], optimizer: AdamParams) -> Row:
    trained = float(sum(example.mask[1:].sum() for example in examples))
    if not trained > 0:  # before the step: Adam would take one on its momentum alone
        raise ValueError(
            f"no token of a batch of {len(examples)} examples is to be trained: their masks are 0 after the "
            "first token"
        )
    started = time.monotonic()
    output, stepped = submit_update(
        student, [supervised_datum(example) for example in examples], "cross_entropy", optimizer
    )
    return {
        "loss_per_token": output.metrics["loss:sum"] / trained,
        "trained_tokens": trained,
        "work": as_row(_work(examples)),
        "learning_rate": optimizer.learning_rate,
        "tokens_per_second": sum(len(e.tokens) for e in examples) / (time.monotonic() - started),
        **{f"optimizer_{name}": value for name, value in (stepped.metrics or {}).items()},
    }


def _work(examples: Sequence[RenderedExample]) -> dict[str, Work]:
    """Training on them, and what it took whoever wrote the answers, each after its own prompt."""
    sizes = [(len(example.tokens), int(example.mask[1:].sum())) for example in examples]
    return {
        "data": total(sampling(length - answer, [answer]) for length, answer in sizes),
        "training": total(training(length - 1, answer) for length, answer in sizes),
    }


def with_answer(problem: Problem) -> list[Message]:
    """The conversation in which the assistant gives the right answer."""
    return [*problem.messages, Message(role="assistant", content=problem.answer)]
