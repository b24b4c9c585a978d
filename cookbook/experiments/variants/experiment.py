"""V1. What goes past the post, against plain distillation and against a control, at equal rollouts.

All students start from one base model and make as many completions of the same problems. Only what they
learn from them differs (`catalogue`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from cookbook.byte_spans import ByteSpanTeacher
from cookbook.contexts import shown_examples
from cookbook.evaluation import evaluate
from cookbook.experiments.base_models import BaseModel
from cookbook.experiments.experiment import Bar, Bench, Experiment, Result
from cookbook.experiments.figures import COLOURS, panels
from cookbook.experiments.statistics import MARGIN, Estimate, estimate, is_more, is_no_loss, negated, percent
from cookbook.experiments.students import (
    ON_POLICY,
    evaluated,
    fresh_student,
    renderer_of,
    saved_sampler,
    seeded,
)
from cookbook.experiments.variants.catalogue import PLAIN, PLAIN_ON_TWO, VARIANTS, Parts
from cookbook.loop import TrainConfig, evaluation_figures, train
from cookbook.metrics import Row
from cookbook.mixing import MixedTask, RoutedTeachers
from cookbook.renderers import Renderer
from cookbook.rollouts import Task
from cookbook.runs import choose
from cookbook.scratch_model import ScratchConfig
from cookbook.supervised import SupervisedConfig, train_supervised
from cookbook.table import SUPERVISED_COLUMNS
from cookbook.tasks import TASKS, with_format_credit
from cookbook.teachers import Teacher
from tinkerlite import SamplingClient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REACHED = 0.9
"""Share of the teacher's accuracy at which a student has arrived."""


@dataclass(frozen=True, kw_only=True)
class VariantsSetting:
    """Everything that changes the result."""

    model: BaseModel
    """Base model of the students and of most teachers."""
    byte_model: BaseModel
    """Base model of a teacher with another tokenizer."""
    task: str
    second_task: str
    """Of the students with two teachers, in equal shares with the first."""
    rank: int
    """Of all LoRA adapters."""
    teacher: SupervisedConfig
    """How teachers of the students' base model are made."""
    byte_teacher: SupervisedConfig
    """How the other one is made, all weights."""
    examples: int
    """Solved problems that the base model is shown where it is the teacher."""
    student: TrainConfig
    """How every student is trained, but for what its variant changes."""


def run(bench: Bench, setting: VariantsSetting) -> None:
    """The teachers, then one student a variant."""
    parts, renderer = make_parts(bench, setting)
    model = bench.models[0]
    base = bench.service.create_sampling_client(base_model=model)
    config = seeded(setting.student, bench.seed + ON_POLICY)
    starts = {
        task.name: evaluate(
            base, task.held_out(config.held_out), renderer=renderer, task=task, max_tokens=config.max_tokens
        )
        for task in (parts.task, parts.two_tasks)
    }
    for name, variant in VARIANTS.items():
        task = variant.task(parts)
        with bench.record(name) as record:
            train(
                variant.sizes(config),
                fresh_student(bench.service, model, setting.rank, bench.seed),
                task,
                renderer=renderer,
                advantages=variant.learns(parts),
                teacher=variant.watched(parts),
                record=record,
                start=starts[task.name],
            )


def make_parts(bench: Bench, setting: VariantsSetting) -> tuple[Parts, Renderer]:
    """All that any variant learns from; how good each teacher is goes into the results."""
    model, byte_model = bench.models
    task, second = (with_format_credit(choose("task", n, TASKS)) for n in (setting.task, setting.second_task))
    base = bench.service.create_sampling_client(base_model=model)
    tokenizer, renderer = base.get_tokenizer(), renderer_of(base)

    def taught(run: str, base_model: str, rank: int, config: SupervisedConfig, of: Task) -> SamplingClient:
        trainer = fresh_student(bench.service, base_model, rank, bench.seed)
        with bench.record(run, SUPERVISED_COLUMNS) as record:
            train_supervised(
                seeded(config, bench.seed), trainer, of, renderer=renderer_of(trainer), record=record
            )
        return saved_sampler(bench.service, trainer, run)

    teacher = Teacher(taught("teacher", model, setting.rank, setting.teacher, task), tokenizer)
    other = Teacher(taught("second-teacher", model, setting.rank, setting.teacher, second), tokenizer)
    of_bytes = taught("byte-teacher", byte_model, 0, setting.byte_teacher, task)
    context = shown_examples(list(islice(task.training_problems(bench.seed), setting.examples)))
    told = [
        replace(problem, messages=tuple(context(problem)))
        for problem in task.held_out(setting.student.held_out)
    ]
    knowing = evaluate(base, told, renderer=renderer, task=task, max_tokens=setting.student.max_tokens)
    bench.note("told-teacher", step=0, **evaluation_figures(knowing))
    parts = Parts(
        teacher=teacher,
        told=Teacher(base, tokenizer, renderer, context),
        of_bytes=ByteSpanTeacher(of_bytes, renderer, renderer_of(of_bytes)),
        both=RoutedTeachers({task.name: teacher, second.name: other}),
        task=task,
        two_tasks=MixedTask(tasks={each.name: each for each in (task, second)}),
    )
    return parts, renderer


# ---- what came out ----


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One variant, over all seeds."""

    name: str
    accuracy: Estimate
    """At the end."""
    difference: Estimate
    """To the variant that it is compared with, seed by seed."""
    arrived: tuple[int | None, ...]
    """First evaluated step at REACHED of the first teacher's accuracy, by seed."""
    kl: Estimate
    """Reverse KL to its own teacher at the last step, nats per token."""
    tokens: Estimate
    """Sampled in training."""
    collapsed: int
    """Seeds in which a guard saw a sign of collapse."""


def outcomes(results: Sequence[Result]) -> list[Outcome]:
    """In the catalogue's order."""
    return [_outcome(name, results) for name in VARIANTS]


def _outcome(name: str, results: Sequence[Result]) -> Outcome:
    runs = [result.of(name) for result in results]
    others = [result.of(VARIANTS[name].against) for result in results]
    ends = [_end(rows) for rows in runs]
    return Outcome(
        name=name,
        accuracy=estimate(ends),
        difference=estimate([end - _end(rows) for end, rows in zip(ends, others, strict=True)]),
        arrived=tuple(
            _arrived(rows, REACHED * _end(result.of("teacher")))
            for rows, result in zip(runs, results, strict=True)
        ),
        kl=estimate([rows[-1]["reverse_kl"] for rows in runs]),
        tokens=estimate([float(sum(row["completion_tokens"] for row in rows[:-1])) for rows in runs]),
        collapsed=sum(any("collapse" in row for row in rows) for rows in runs),
    )


def _end(rows: Sequence[Row]) -> float:
    return evaluated(rows)[-1]["accuracy"]


def _arrived(rows: Sequence[Row], target: float) -> int | None:
    return next((row["step"] for row in evaluated(rows) if row["accuracy"] >= target), None)


def tables(results: Sequence[Result]) -> str:
    """One row a variant, then the teachers."""
    lines = [
        "| variant | accuracy | difference | step at 90% of the teacher | reverse KL | tokens sampled |",
        "|---|---|---|---|---|---|",
    ]
    for outcome in outcomes(results):
        of_itself = VARIANTS[outcome.name].against == outcome.name
        cells = (
            outcome.name + (f" (collapsed in {outcome.collapsed})" if outcome.collapsed else ""),
            outcome.accuracy.text(percent),
            "" if of_itself else outcome.difference.text(_points),
            # On two tasks, the accuracy of one task's teacher is no measure.
            ""
            if VARIANTS[outcome.name].against == PLAIN_ON_TWO
            else " / ".join("never" if step is None else str(step) for step in outcome.arrived),
            outcome.kl.text(lambda nats: f"{nats:.3f}"),
            f"{outcome.tokens.mean:,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    teachers = ", ".join(
        f"{name} {estimate([_end(result.of(name)) for result in results]).text(percent)}"
        for name in ("teacher", "second-teacher", "told-teacher", "byte-teacher")
    )
    note = (
        f"Difference: to {PLAIN!r}, with two tasks to {PLAIN_ON_TWO!r}, seed by seed. The KL is to a "
        f"variant's own teacher. Accuracies of the teachers: {teachers}."
    )
    return "\n".join([*lines, "", note])


def _points(change: float) -> str:
    return f"{100 * change:+.1f} points"


def bars(results: Sequence[Result]) -> list[Bar]:
    """What the field expects of these."""
    found = {outcome.name: outcome for outcome in outcomes(results)}
    control = negated(found["control: fixed penalty"].difference)
    bars = [_ahead("Plain distillation is ahead of the control: how much a teacher objects matters", control)]
    for name in ("top-k", "control variate", "short rollouts"):
        difference = found[name].difference
        bars.append(
            Bar(
                claim=(
                    f"At equal rollouts, {name!r} loses nothing against plain distillation, give or take "
                    f"{100 * MARGIN:.0f} points"
                ),
                measured=difference.text(_points),
                holds=is_no_loss(difference),
            )
        )
    bars.append(
        _ahead(
            "Two tasks are learned better from a teacher each", found["two tasks, two teachers"].difference
        )
    )
    return bars


def _ahead(claim: str, difference: Estimate) -> Bar:
    return Bar(claim=claim, measured=difference.text(_points), holds=is_more(difference))


def figure(results: Sequence[Result]) -> Figure:
    """Accuracy at the end, and the KL to the teacher, one line a variant, one dot a seed."""
    found = outcomes(results)
    drawing, (accuracy, kl) = panels(2, width=5.2, height=0.32 * len(found) + 1)
    _dots(accuracy, found, lambda outcome: outcome.accuracy)
    _dots(kl, found, lambda outcome: outcome.kl)
    accuracy.set_xlabel("accuracy, held out")
    accuracy.axvline(found[0].accuracy.mean, color=COLOURS["opd"], linestyle="--", linewidth=1)
    kl.set_xlabel("reverse KL to its own teacher, nats per token")
    kl.set_yticklabels([])
    return drawing


def _dots(axis: Any, found: Sequence[Outcome], of: Callable[[Outcome], Estimate]) -> None:
    places = range(len(found), 0, -1)
    for place, outcome in zip(places, found, strict=True):
        colour = COLOURS["teacher"] if "control:" in outcome.name else COLOURS["opd"]
        axis.plot(of(outcome).values, [place] * len(of(outcome).values), ".", color=colour, alpha=0.5)
        axis.plot([of(outcome).mean], [place], "|", color=colour, markersize=12)
    axis.set_yticks(list(places), [outcome.name for outcome in found])


SMOKE_SFT = SupervisedConfig(steps=1, batch_size=2, max_tokens=4, evaluate_every=1, held_out=2)

EXPERIMENT = Experiment(
    number="V1",
    name="variants",
    title="Past the post: variants of distillation against the plain one, at equal rollouts",
    claim=(
        "The post names as open: less variance from top-k or whole distributions, dense KL beside a reward, "
        "several teachers, partial rollouts, better supervision. And a control that came after it: a fixed "
        "penalty on what the teacher objects to is reported to come close to distillation (arXiv:2608.31046)."
    ),
    sizes={
        "smoke": VariantsSetting(
            model=ScratchConfig(hidden=32, layers=1, heads=2, mlp=64),
            byte_model=ScratchConfig(hidden=32, layers=1, heads=2, mlp=64),
            task="larger",
            second_task="sums",
            rank=4,
            teacher=SMOKE_SFT,
            byte_teacher=SMOKE_SFT,
            examples=2,
            student=TrainConfig(
                steps=1,
                prompts_per_step=2,
                group_size=2,
                max_tokens=4,
                evaluate_every=1,
                held_out=2,
                stop_when_collapsed=False,
            ),
        ),
        "small": VariantsSetting(
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            byte_model=ScratchConfig(hidden=192, layers=3, heads=6, mlp=512),
            task="larger",
            second_task="sort-letters",
            rank=32,
            teacher=SupervisedConfig(steps=12, batch_size=32, evaluate_every=12, max_tokens=8),
            byte_teacher=SupervisedConfig(
                steps=600, batch_size=32, evaluate_every=600, max_tokens=8, learning_rate=2e-3
            ),
            examples=8,
            student=TrainConfig(
                steps=6,
                prompts_per_step=12,
                group_size=8,
                max_tokens=8,
                evaluate_every=3,
                held_out=100,
                # What collapses is a result here.
                stop_when_collapsed=False,
            ),
        ),
    },
    models=lambda setting: [setting.model, setting.byte_model],
    run=run,
    tables=tables,
    bars=bars,
    figure=figure,
)
