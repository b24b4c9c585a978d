"""E7. A wrong answer, shaded by what the teacher objects to.

The student has only met ice in cold places, and adds up; the teacher has met hot places too. On a question
about a hot place the student takes the wrong turn where it says what the place is, and the teacher objects
there. How much it objects where the argument could still be saved, and to the number at the end, is measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from cookbook.experiments.base_models import BaseModel
from cookbook.experiments.experiment import Bar, Bench, Experiment, Result
from cookbook.experiments.figures import COLOURS, panels
from cookbook.experiments.shaded_answer.puzzle import ALL_PUZZLES, COLD_PUZZLES, HOT_PUZZLES, PuzzleTask
from cookbook.experiments.statistics import Estimate, estimate, is_more, percent, reaches
from cookbook.experiments.students import (
    fresh_student,
    renderer_of,
    saved_sampler,
    seeded,
)
from cookbook.renderers import Renderer
from cookbook.rollouts import rollout
from cookbook.scratch_model import ScratchConfig
from cookbook.shading import diverges, penalty, shade, terminal_text
from cookbook.supervised import SupervisedConfig, train_supervised
from cookbook.table import SUPERVISED_COLUMNS
from tinkerlite import SamplingClient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANSWER = "answer"
PENALISED = 0.1
"""Nats from which a token counts as penalised: the teacher finds it a tenth less likely."""
Token = Mapping[str, Any]
"""A `shading.ShadedToken`, as the results hold it."""


@dataclass(frozen=True, kw_only=True)
class ShadedAnswerSetting:
    """Everything that changes the result."""

    student: BaseModel
    teacher: BaseModel
    rank: int
    """Of the adapters, where there are lessons."""
    lessons: SupervisedConfig | None
    """How both learn the puzzles; None: they answer as they are."""
    questions: int
    """Held-out puzzles about hot places that the student answers."""
    max_tokens: int
    """Longest answer, in tokens."""
    shown: int
    """Wrong answers that are printed, shaded."""


def run(bench: Bench, setting: ShadedAnswerSetting) -> None:
    """Lessons for both, then the student's answers under the teacher's eyes."""
    student_model, teacher_model = bench.models
    renderer = renderer_of(bench.service.create_sampling_client(base_model=student_model))
    student = _after_lessons(bench, setting, "student", student_model, COLD_PUZZLES, renderer)
    teacher = _after_lessons(bench, setting, "teacher", teacher_model, ALL_PUZZLES, renderer)
    groups = rollout(
        student,
        HOT_PUZZLES.held_out(setting.questions),
        renderer=renderer,
        task=HOT_PUZZLES,
        group_size=1,
        max_tokens=setting.max_tokens,
        seed=bench.seed,
    )
    answers = shade([t for group in groups for t in group.trajectories], teacher, renderer)
    wrong = 0
    for group, tokens in zip(groups, answers, strict=True):
        [trajectory] = group.trajectories
        question, correct = group.problem.messages[-1]["content"], trajectory.grade.correct
        bench.note(ANSWER, question=question, correct=correct, tokens=tokens)
        wrong += not correct
        if not correct and wrong <= setting.shown:
            bench.console.print(f"\n{question}", markup=False)
            bench.console.print(terminal_text(tokens))


def _after_lessons(
    bench: Bench,
    setting: ShadedAnswerSetting,
    name: str,
    model: str,
    task: PuzzleTask,
    renderer: Renderer,
) -> SamplingClient:
    if setting.lessons is None:
        return bench.service.create_sampling_client(base_model=model)
    trainer = fresh_student(bench.service, model, setting.rank, bench.seed)
    with bench.record(name, SUPERVISED_COLUMNS) as record:
        train_supervised(seeded(setting.lessons, bench.seed), trainer, task, renderer=renderer, record=record)
    return saved_sampler(bench.service, trainer, name)


@dataclass(frozen=True, kw_only=True)
class Objections:
    """Where the teacher objects in one wrong answer, in nats."""

    carried: float | None
    """Share of all penalties of at least PENALISED that the first divergent token carries; None if it is the
    only one, which carries all."""
    first: float
    """The penalty of the first divergent token."""
    later: tuple[float, ...]
    """Penalties of the penalised tokens that are neither the first divergent one nor of the final answer."""
    penalised: tuple[float, ...]
    """All penalties of at least PENALISED."""
    final: float
    """Of the number that the answer ends with: mean over its tokens."""


def objections(tokens: Sequence[Token]) -> Objections | None:
    """None if the teacher objects to nothing, or the answer has no number."""
    penalties = [penalty(token) for token in tokens]
    first = next((place for place, token in enumerate(tokens) if diverges(token)), None)
    penalised = {place: nats for place, nats in enumerate(penalties) if nats >= PENALISED}
    last = _number_at_the_end(tokens)
    if first is None or not penalised or not last:
        return None
    return Objections(
        carried=penalised.get(first, 0.0) / sum(penalised.values()) if penalised.keys() - {first} else None,
        first=penalties[first],
        later=tuple(nats for place, nats in penalised.items() if place != first and place not in last),
        penalised=tuple(penalised.values()),
        final=sum(penalties[place] for place in last) / len(last),
    )


def _number_at_the_end(tokens: Sequence[Token]) -> list[int]:
    """Places of the tokens that write the last number."""
    text = "".join(token["text"] for token in tokens)
    numbers = list(re.finditer(r"\d+", text))
    if not numbers:
        return []
    start, end = numbers[-1].span()
    places: list[int] = []
    position = 0
    for place, token in enumerate(tokens):
        if position < end and position + len(token["text"]) > start:
            places.append(place)
        position += len(token["text"])
    return places


@dataclass(frozen=True, kw_only=True)
class Seed:
    """What the wrong answers of one seed say."""

    wrong: int
    answers: int
    forked: int
    """Wrong answers with another penalised token than the first divergent one."""
    carried: float | None
    """Mean over these; None if there are none."""
    first: float
    """Median over the wrong answers, in nats."""
    later: float
    """Median of the other penalised tokens; 0 if there are none."""
    penalised: float
    """Median of all penalised tokens."""
    final: float
    """Median over the wrong answers."""


def figures_of(result: Result) -> Seed | None:
    """None if no answer was wrong and objected to."""
    rows = result.of(ANSWER)
    found = [each for row in rows if not row["correct"] and (each := objections(row["tokens"]))]
    if not found:
        return None
    later = [nats for each in found for nats in each.later]
    carried = [each.carried for each in found if each.carried is not None]
    return Seed(
        wrong=sum(not row["correct"] for row in rows),
        answers=len(rows),
        forked=len(carried),
        carried=fmean(carried) if carried else None,
        first=median(each.first for each in found),
        later=median(later) if later else 0.0,
        penalised=median(nats for each in found for nats in each.penalised),
        final=median(each.final for each in found),
    )


def tables(results: Sequence[Result]) -> str:
    """One row a seed."""
    lines = [
        "| seed | wrong answers | carried by the first divergent | first | others | all | final |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        seed = figures_of(result)
        if seed is None:
            lines.append(f"| {result.seed} | no wrong answer that the teacher objects to | | | | | |")
            continue
        nats = [f"{value:.2f}" for value in (seed.first, seed.later, seed.penalised, seed.final)]
        share = "-" if seed.carried is None else f"{percent(seed.carried)} of {seed.forked}"
        cells = (f"{seed.wrong} of {seed.answers}", share, *nats)
        lines.append(f"| {result.seed} | {' | '.join(cells)} |")
    note = (
        f"Third column: share of an answer's penalties, of those from {PENALISED} nats on, that its first "
        "divergent token carries, where it is not the only one. Then medians in nats: of the first divergent "
        "tokens, of the other penalised tokens, of all penalised tokens, and of the final number."
    )
    return "\n".join(lines) + f"\n\n{note}"


FIRST_CLAIM = "The first divergent token carries most of what an answer is penalised for"


def bars(results: Sequence[Result]) -> list[Bar]:
    """The beginning is penalised, the end is not."""
    seeds = [seed for result in results if (seed := figures_of(result))]
    if not seeds:
        return [Bar(claim=FIRST_CLAIM, measured="no wrong answer that the teacher objects to")]
    carried = [seed.carried for seed in seeds if seed.carried is not None]
    final, middle = estimate([s.final for s in seeds]), estimate([s.penalised for s in seeds])
    return [
        _first_bar(carried, len(seeds)),
        Bar(
            claim="The final answer's penalty is below the median of the penalised tokens",
            measured=f"{final.text(_nats)} against {middle.text(_nats)}",
            holds=is_more(estimate([seed.penalised - seed.final for seed in seeds])),
        ),
    ]


def _first_bar(carried: Sequence[float], seeds: int) -> Bar:
    if len(carried) < seeds:
        alone = f"with {seeds - len(carried)} of {seeds} seeds nothing else is penalised in any answer"
        return Bar(claim=FIRST_CLAIM, measured=alone)
    mean = estimate(carried)
    return Bar(
        claim=FIRST_CLAIM,
        measured=f"the first one carries {mean.text(percent)} of an answer's penalties",
        holds=reaches(mean, 0.5),
    )


def _nats(value: float) -> str:
    return f"{value:.2f} nats"


def figure(results: Sequence[Result]) -> Figure:
    """One wrong answer token by token, and the medians of all."""
    drawing, (one, every) = panels(2, width=6.4, height=4.2)
    row = next((r for result in results for r in result.of(ANSWER) if not r["correct"]), None)
    if row is not None:
        tokens = row["tokens"]
        colours = [COLOURS["rl"] if diverges(token) else COLOURS["sft"] for token in tokens]
        one.bar(range(len(tokens)), [penalty(token) for token in tokens], color=colours)
        labels = ["".join(c if c.isprintable() else "·" for c in token["text"]) for token in tokens]
        one.set_xticks(range(len(tokens)), labels, rotation=90, fontsize=7)
        one.set(ylabel="penalty, nats", title="one wrong answer (red: the teacher would differ)")
    seeds = [seed for result in results if (seed := figures_of(result))]
    if seeds:
        groups: dict[str, Estimate] = {
            "first\ndivergent": estimate([seed.first for seed in seeds]),
            "other\npenalised": estimate([seed.later for seed in seeds]),
            "final\nanswer": estimate([seed.final for seed in seeds]),
        }
        every.bar(list(groups), [each.mean for each in groups.values()], color=COLOURS["teacher"], width=0.6)
        for place, each in enumerate(groups.values()):
            every.plot([place] * len(each.values), each.values, ".", color=COLOURS["rl"])
        every.set(ylabel="penalty, nats", title="medians over the wrong answers; a dot a seed")
    return drawing


EXPERIMENT = Experiment(
    number="E7",
    name="shaded_answer",
    title="A teacher objects to the first wrong turn, not to the wrong answer at the end",
    claim=(
        "In the post, Qwen3-4B-Instruct-2507 walks into a trap of SimpleBench: it calculates with ice cubes "
        "in a frying pan. Qwen3-235B-A22B-Instruct-2507 penalises the tokens that begin the wrong line of "
        "thought; the wrong number at the end, which follows from them, hardly at all."
    ),
    sizes={
        "smoke": ShadedAnswerSetting(
            student=ScratchConfig(hidden=32, layers=1, heads=2, mlp=64),
            teacher=ScratchConfig(hidden=48, layers=1, heads=2, mlp=64),
            rank=4,
            lessons=SupervisedConfig(steps=1, batch_size=2, held_out=2, max_tokens=4, evaluate_every=1),
            questions=2,
            max_tokens=12,
            shown=1,
        ),
        "small": ShadedAnswerSetting(
            student="HuggingFaceTB/SmolLM2-135M-Instruct",
            teacher="HuggingFaceTB/SmolLM2-135M-Instruct",
            rank=32,
            lessons=SupervisedConfig(
                steps=32,
                batch_size=16,
                learning_rate=1e-3,
                decay_to=0.1,
                held_out=40,
                max_tokens=48,
                evaluate_every=16,
            ),
            questions=64,
            max_tokens=48,
            shown=3,
        ),
        "full": ShadedAnswerSetting(
            student="Qwen/Qwen3-4B-Instruct-2507",
            teacher="Qwen/Qwen3-235B-A22B-Instruct-2507",
            rank=32,
            lessons=None,
            questions=64,
            max_tokens=2048,
            shown=3,
        ),
    },
    models=lambda setting: [setting.student, setting.teacher],
    run=run,
    tables=tables,
    bars=bars,
    figure=figure,
)
