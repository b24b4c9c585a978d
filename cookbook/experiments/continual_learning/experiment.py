"""E8. Learn new documents, recover, learn more: phases of SFT and of OPD from the models before them.

Each round has documents about other products. Learning them costs behaviour, and some of what was learned
before. The models as they were are still there, though, and need no data to teach: they grade the student's
own answers. The original knows how to chat; the model before the round, what earlier rounds taught; a copy
that reads nothing but the new documents, what these say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cookbook.advantages import reverse_kl
from cookbook.company import Company, CompanyTask
from cookbook.experiments.base_models import BaseModel
from cookbook.experiments.conversation import (
    LEARNED,
    ChatSetting,
    CompanySetting,
    SampleSetting,
    columns,
    documents_and_chat,
    kept,
    knowledge_of,
    last_measured,
)
from cookbook.experiments.experiment import Bar, Bench, Experiment, Result
from cookbook.experiments.figures import COLOURS, as_percent, panels
from cookbook.experiments.school import CLERK
from cookbook.experiments.statistics import all_hold, estimate, estimate_known, percent, reaches
from cookbook.experiments.students import (
    fresh_student,
    renderer_of,
    saved_sampler,
    seeded,
    with_fresh_optimizer,
)
from cookbook.loop import TrainConfig, known_at_first, train
from cookbook.measures import together
from cookbook.metrics import Row
from cookbook.mixing import MixedTask, RoutedTeachers
from cookbook.rollouts import Task
from cookbook.scratch_model import ScratchConfig
from cookbook.supervised import SupervisedConfig, train_on_examples
from cookbook.teachers import Teacher

if TYPE_CHECKING:
    from matplotlib.figure import Figure

START = "start"
CHAT, EARLIER, NEW = "chat", "earlier rounds", "this round"
WITHIN, KEPT = 0.05, 0.8


@dataclass(frozen=True, kw_only=True)
class ContinualLearningSetting:
    """Everything that changes the result."""

    model: BaseModel
    rank: int
    """Of the one adapter that all rounds train."""
    rounds: int
    company: CompanySetting
    """Of a round."""
    chat: ChatSetting
    samples: SampleSetting
    """The chat of the original in a round's mix."""
    answers: SampleSetting
    """Beside it, from the second round on: of the model before the round, to questions about earlier ones."""
    document_share: float
    """Of the examples of the learning phase; the others rehearse."""
    learn: SupervisedConfig
    recover: TrainConfig
    kl_clip: float | None
    """Largest per-token KL that counts in the recovery, in nats."""


def reading(number: int) -> str:
    """The run of a round's copy, which reads the documents and nothing else; rounds count from 1."""
    return f"round {number}: a copy reads"


def learning(number: int) -> str:
    """The run of a round's first phase."""
    return f"round {number}: learn"


def recovery(number: int) -> str:
    """The run of a round's second phase."""
    return f"round {number}: recover"


def known(number: int) -> str:
    """The figure that says how much of a round's documents is known."""
    return f"round_{number}"


def run(bench: Bench, setting: ContinualLearningSetting) -> None:
    """All rounds, on one student."""
    [model] = bench.models
    student = fresh_student(bench.service, model, setting.rank, bench.seed)
    tokenizer, renderer = student.get_tokenizer(), renderer_of(student)
    company = setting.company.founded(bench.seed, rounds=setting.rounds)
    parts = company.divided(setting.rounds)
    names = [known(number) for number in range(1, setting.rounds + 1)]
    measure = together(
        setting.chat.behaviour(renderer, bench.seed),
        *(
            knowledge_of(company, part, renderer, setting.company.answer_tokens, name)
            for name, part in zip(names, parts, strict=True)
        ),
    )
    chat = setting.chat.prompts()
    original = earlier = saved_sampler(bench.service, student, "start")
    figures = measure(original)
    bench.note(START, step=0, **figures)
    for number, part in enumerate(parts, 1):
        seed = bench.seed * setting.rounds + number  # other chat and other documents every round
        samples = setting.samples.examples(original, chat, renderer, seed)
        rehearsed: dict[str, Task] = {CHAT: chat}
        teachers = {CHAT: Teacher(original, tokenizer)}
        if number > 1:
            rehearsed[EARLIER] = questions = _questions(company, parts[: number - 1])
            teachers[EARLIER] = Teacher(earlier, tokenizer)
            samples += setting.answers.examples(earlier, questions, renderer, seed)
        copy = with_fresh_optimizer(bench.service, student, f"before-{number}")
        with bench.record(reading(number), columns(*names)) as record:
            train_on_examples(
                seeded(setting.learn, seed),
                copy,
                documents_and_chat(part, [], 1.0, tokenizer, seed),
                measure=known_at_first(measure, figures),
                record=record,
            )
        # Whom nobody asks about this round, forgets it while the others are brought back.
        rehearsed[NEW] = _questions(company, [part])
        teachers[NEW] = Teacher(saved_sampler(bench.service, copy, f"read-{number}"), tokenizer)
        with bench.record(learning(number), columns(*names)) as record:
            rows = train_on_examples(
                seeded(setting.learn, seed),
                student,
                documents_and_chat(part, samples, setting.document_share, tokenizer, seed),
                measure=known_at_first(measure, figures),
                record=record,
            )
        figures = {name: rows[-1][name] for name in figures}
        student = with_fresh_optimizer(bench.service, student, f"learned-{number}")
        teacher = RoutedTeachers(teachers)
        with bench.record(recovery(number), columns(*names)) as record:
            rows = train(
                seeded(setting.recover, seed),
                student,
                MixedTask(tasks=rehearsed),
                renderer=renderer,
                advantages=reverse_kl(teacher, clip=setting.kl_clip),
                teacher=teacher,
                measure=known_at_first(measure, figures),
                record=record,
            )
        figures = {name: rows[-1][name] for name in figures}
        student = with_fresh_optimizer(bench.service, student, f"recovered-{number}")
        earlier = saved_sampler(bench.service, student, f"round-{number}")


def _questions(company: Company, parts: Sequence[Company]) -> Task:
    """About some rounds' products."""
    facts = tuple(fact for part in parts for fact in part.facts)
    return CompanyTask(company=Company(name=company.name, facts=facts))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What one seed knew, and how it behaved, when a phase ended."""

    name: str
    behaviour: float
    knowledge: tuple[float, ...]
    """By round."""


def phases_of(result: Result, *, copies: bool = False) -> list[Phase]:
    """The start and the end of every phase of the student; its copies, which read, are not the student."""
    rounds: int = result.header["setting"]["rounds"]
    of_round = (reading, learning, recovery) if copies else (learning, recovery)
    names = [START, *(name(n) for n in range(1, rounds + 1) for name in of_round)]
    return [
        Phase(
            name=name,
            behaviour=last_measured(result.of(name), "behaviour"),
            knowledge=tuple(last_measured(result.of(name), known(n)) for n in range(1, rounds + 1)),
        )
        for name in names
    ]


def kept_of_peak(result: Result) -> list[float | None]:
    """Of each round's knowledge, the share of its highest value that is left at the end; None if it learned
    too little to tell."""
    phases = phases_of(result)
    peaks = [max(phase.knowledge[n] for phase in phases) for n in range(len(phases[0].knowledge))]
    return [kept(end, peak, least=LEARNED) for end, peak in zip(phases[-1].knowledge, peaks, strict=True)]


def tables(results: Sequence[Result]) -> str:
    """One row a phase: behaviour, and the knowledge of every round's documents."""
    seeds = [phases_of(result, copies=True) for result in results]
    rounds = len(seeds[0][0].knowledge)
    heading = ["after", "behaviour", *(f"knowledge {n}" for n in range(1, rounds + 1))]
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    for place, phase in enumerate(seeds[0]):
        ours = [
            estimate([seed[place].behaviour for seed in seeds]),
            *(estimate([seed[place].knowledge[n] for seed in seeds]) for n in range(rounds)),
        ]
        lines.append(f"| {' | '.join([phase.name, *(each.text(percent) for each in ours)])} |")
    return "\n".join(lines)


def bars(results: Sequence[Result]) -> list[Bar]:
    """Behaviour comes back, and knowledge stays."""
    seeds = [phases_of(result) for result in results]
    behaviour = [kept(seed[-1].behaviour, seed[0].behaviour) for seed in seeds]
    shares = [kept_of_peak(result) for result in results]
    by_round = [[seed[n] for seed in shares] for n in range(len(shares[0]))]
    return [
        Bar(
            claim=f"After {len(by_round)} rounds behaviour is at least {1 - WITHIN:.0%} of the start",
            measured=f"{_text(behaviour, 'an unknown share')} of the start",
            holds=_holds(behaviour, 1 - WITHIN),
        ),
        Bar(
            claim=f"... and the knowledge of every round above {KEPT:.0%} of its own peak",
            measured=", ".join(
                f"round {n}: {_text(each, 'learned too little')}" for n, each in enumerate(by_round, 1)
            ),
            holds=all_hold([_holds(each, KEPT) for each in by_round]),
        ),
    ]


def _text(shares: Sequence[float | None], unknown: str) -> str:
    measured = estimate_known(shares)
    return unknown if measured is None else measured.text(percent)


def _holds(shares: Sequence[float | None], least: float) -> bool | None:
    measured = estimate_known(shares)
    return None if measured is None else reaches(measured, least)


def figure(results: Sequence[Result]) -> Figure:
    """Behaviour and knowledge over all updates, recoveries shaded."""
    drawing, (behaviour, knowledge) = panels(2, width=6.0)
    rounds: int = results[0].header["setting"]["rounds"]
    shades = ["#30638e", "#e09f3e", "#7b2d8b", "#6c757d"]
    for index, result in enumerate(results):
        points, recoveries = _timeline(result, rounds)
        xs = [x for x, _ in points]
        label = "behaviour" if index == 0 else None
        behaviour.plot(
            xs, [row["behaviour"] for _, row in points], ".-", color=COLOURS["opd"], label=label, alpha=0.8
        )
        for number in range(1, rounds + 1):
            label = f"documents of round {number}" if index == 0 else None
            values = [row[known(number)] for _, row in points]
            shade = shades[(number - 1) % len(shades)]
            knowledge.plot(xs, values, ".-", color=shade, label=label, alpha=0.8)
        for axis in (behaviour, knowledge) if index == 0 else ():
            for start, end in recoveries:
                axis.axvspan(start, end, color=COLOURS["opd"], alpha=0.08, linewidth=0)
    as_percent(behaviour, "prompts whose instructions are followed")
    as_percent(knowledge, "questions answered")
    for axis in (behaviour, knowledge):
        axis.set_xlabel("updates (shaded: OPD from the earlier self)")
        axis.legend(frameon=False)
    return drawing


def _timeline(result: Result, rounds: int) -> tuple[list[tuple[int, Row]], list[tuple[int, int]]]:
    """Measured rows by the updates before them, and where the recoveries lie."""
    points: list[tuple[int, Row]] = []
    recoveries: list[tuple[int, int]] = []
    done = 0
    for number in range(1, rounds + 1):
        for name in (learning(number), recovery(number)):
            rows = result.of(name)
            points += [(done + row["step"], row) for row in rows if row.get("behaviour") is not None]
            end = done + rows[-1]["step"]
            if name == recovery(number):
                recoveries.append((done, end))
            done = end
    return points, recoveries


EXPERIMENT = Experiment(
    number="E8",
    name="continual_learning",
    title="Learn, recover, learn more: knowledge adds up and behaviour stays",
    claim=(
        "The post proposes to alternate phases: fine-tune on new data, then distil from the model as it was "
        "before, which brings its behaviour back. It shows one such cycle and gives no figures for more."
    ),
    sizes={
        "smoke": ContinualLearningSetting(
            model=ScratchConfig(hidden=32, layers=1, heads=2, mlp=64),
            rank=4,
            rounds=2,
            company=CompanySetting(kind="parts", products=1, answer_tokens=4),
            chat=ChatSetting(tested=2, max_tokens=4),
            samples=SampleSetting(prompts=2, max_tokens=4),
            answers=SampleSetting(prompts=2, max_tokens=4),
            document_share=0.5,
            learn=SupervisedConfig(steps=1, batch_size=2, evaluate_every=1),
            recover=TrainConfig(steps=1, prompts_per_step=2, group_size=1, max_tokens=4, evaluate_every=1),
            kl_clip=None,
        ),
        "small": ContinualLearningSetting(
            model=CLERK,
            rank=32,
            rounds=3,
            company=CompanySetting(kind="parts", products=12, answer_tokens=8),
            chat=ChatSetting(),
            samples=SampleSetting(prompts=320),
            answers=SampleSetting(prompts=320, max_tokens=8),
            document_share=0.5,
            learn=SupervisedConfig(
                steps=150, batch_size=32, learning_rate=4e-3, warmup_steps=5, evaluate_every=75
            ),
            recover=TrainConfig(
                steps=40,
                prompts_per_step=96,
                group_size=1,
                max_tokens=24,
                learning_rate=5e-4,
                warmup_steps=5,
                evaluate_every=20,
            ),
            kl_clip=None,
        ),
        "full": ContinualLearningSetting(
            model="Qwen/Qwen3-8B",
            rank=128,
            rounds=3,
            company=CompanySetting(kind="products", products=6, answer_tokens=256),
            chat=ChatSetting(
                chat_file="data/tulu-3.jsonl", ifeval_file="data/ifeval.jsonl", tested=541, max_tokens=4096
            ),
            samples=SampleSetting(prompts=12_800, max_tokens=4096),
            answers=SampleSetting(prompts=3200, max_tokens=4096),
            document_share=0.7,
            learn=SupervisedConfig(
                steps=150, batch_size=128, learning_rate=1e-3, decay_to=0.0, evaluate_every=50
            ),
            recover=TrainConfig(
                steps=100,
                prompts_per_step=64,
                group_size=4,
                max_tokens=4096,
                learning_rate=1e-4,
                decay_to=1.0,
                evaluate_every=50,
            ),
            kl_clip=None,
        ),
    },
    models=lambda setting: [setting.model],
    run=run,
    tables=tables,
    bars=bars,
    figure=figure,
)
