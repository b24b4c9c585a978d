"""E3. Learn a company's documents, lose the manners; get them back by OPD from the model that had them.

Students learn the same documents, with more or less chat in between that the model itself wrote.
Then the original model grades chat of one of them. Every step is measured twice: what is known, and how
well instructions are followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from cookbook.advantages import reverse_kl
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
from cookbook.experiments.statistics import estimate, estimate_known, percent, reaches
from cookbook.experiments.students import (
    fresh_student,
    renderer_of,
    seeded,
    with_fresh_optimizer,
)
from cookbook.loop import TrainConfig, known_at_first, train
from cookbook.measures import together
from cookbook.scratch_model import ScratchConfig
from cookbook.supervised import SupervisedConfig, train_on_examples
from cookbook.teachers import Teacher

if TYPE_CHECKING:
    from matplotlib.figure import Figure

START = "start"
RECOVERED = "mix + OPD"
FALL, KEPT = 1 / 3, 0.95
PUBLISHED = {
    START: (0.18, 0.85),
    "documents": (0.43, 0.45),
    "70% documents": (0.36, 0.79),
    RECOVERED: (0.41, 0.83),
}
"""Internal questions and IF-eval in the post, by run."""


@dataclass(frozen=True, kw_only=True)
class PersonalisationSetting:
    """Everything that changes the result."""

    model: BaseModel
    """The original, which is also the teacher."""
    rank: int
    """Of all LoRA adapters."""
    company: CompanySetting
    chat: ChatSetting
    samples: SampleSetting
    """The chat in the mixes."""
    document_shares: tuple[float, ...]
    """Share of documents among the examples of each student."""
    recovered_share: float
    """The student that is recovered."""
    learn: SupervisedConfig
    recover: TrainConfig
    kl_clip: float | None
    """Largest per-token KL that counts in the recovery, in nats."""


def share_name(share: float) -> str:
    """The run of a share of documents."""
    return "documents" if share == 1.0 else f"{share:.0%} documents"


def run(bench: Bench, setting: PersonalisationSetting) -> None:
    """Every mix, then the recovery of one."""
    [model] = bench.models
    original = bench.service.create_sampling_client(base_model=model)
    tokenizer, renderer = original.get_tokenizer(), renderer_of(original)
    company = setting.company.founded(bench.seed)
    chat = setting.chat.prompts()
    measure = together(
        knowledge_of(company, company, renderer, setting.company.answer_tokens),
        setting.chat.behaviour(renderer, bench.seed),
    )
    start = measure(original)
    bench.note(START, step=0, **start)
    samples = setting.samples.examples(original, chat, renderer, bench.seed)
    for share in setting.document_shares:
        student = fresh_student(bench.service, model, setting.rank, bench.seed)
        with bench.record(share_name(share), columns("knowledge")) as record:
            rows = train_on_examples(
                seeded(setting.learn, bench.seed),
                student,
                documents_and_chat(company, samples, share, tokenizer, bench.seed),
                measure=known_at_first(measure, start),
                record=record,
            )
        if share == setting.recovered_share:
            student = with_fresh_optimizer(bench.service, student, "learned")
            teacher = Teacher(original, tokenizer)
            with bench.record(RECOVERED, columns("knowledge")) as record:
                train(
                    seeded(setting.recover, bench.seed),
                    student,
                    chat,
                    renderer=renderer,
                    advantages=reverse_kl(teacher, clip=setting.kl_clip),
                    teacher=teacher,
                    measure=known_at_first(measure, {name: rows[-1][name] for name in start}),
                    record=record,
                )


@dataclass(frozen=True, kw_only=True)
class Seed:
    """Where the runs of one seed ended."""

    knowledge: Mapping[str, float]
    behaviour: Mapping[str, float]
    loose: Mapping[str, float]


def figures_of(result: Result) -> Seed:
    """By run, in order of appearance."""
    ends = {name: result.of(name) for name in result.runs}
    return Seed(
        knowledge={name: last_measured(rows, "knowledge") for name, rows in ends.items()},
        behaviour={name: last_measured(rows, "behaviour") for name, rows in ends.items()},
        loose={name: last_measured(rows, "behaviour_loose") for name, rows in ends.items()},
    )


def tables(results: Sequence[Result]) -> str:
    """One row a run, the post's figures in the last columns."""
    lines = [
        "| model | knowledge | behaviour, strict | loose | post: internal QA | post: IF-eval |",
        "|---|---|---|---|---|---|",
    ]
    seeds = [figures_of(result) for result in results]
    for name in results[0].runs:
        ours = (
            estimate([seed.knowledge[name] for seed in seeds]),
            estimate([seed.behaviour[name] for seed in seeds]),
            estimate([seed.loose[name] for seed in seeds]),
        )
        post = [f"{value:.0%}" for value in PUBLISHED[name]] if name in PUBLISHED else ["", ""]
        lines.append(f"| {' | '.join([name, *(e.text(percent) for e in ours), *post])} |")
    return "\n".join([*lines, "", *_by_kind(results)])


def _by_kind(results: Sequence[Result]) -> list[str]:
    """Behaviour by the kind of instruction: a mean over kinds hides what each lost and gained."""
    kinds = sorted(_kinds_at_the_end(results[0], START))
    lines = [f"| strict, by kind | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for name in results[0].runs:
        seeds = [_kinds_at_the_end(result, name) for result in results]
        cells = [f"{fmean(seed[kind] for seed in seeds):.0%}" for kind in kinds]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def _kinds_at_the_end(result: Result, name: str) -> Mapping[str, float]:
    return [row["behaviour_by_kind"] for row in result.of(name) if row.get("behaviour_by_kind")][-1]


def bars(results: Sequence[Result]) -> list[Bar]:
    """What documents alone do, and what OPD restores and keeps."""
    seeds = [figures_of(result) for result in results]
    mix = share_name(results[0].header["setting"]["recovered_share"])
    left = [kept(seed.behaviour["documents"], seed.behaviour[START]) for seed in seeds]
    lost = [None if share is None else 1 - share for share in left]
    behaviour = [kept(seed.behaviour[RECOVERED], seed.behaviour[START]) for seed in seeds]
    knowledge = [kept(seed.knowledge[RECOVERED], seed.knowledge[mix], least=LEARNED) for seed in seeds]
    return [
        _bar("Documents alone cost at least a third of the behaviour", "falls by", lost, FALL),
        _bar(f"Mix and OPD: at least {KEPT:.0%} of the original behaviour", "keeps", behaviour, KEPT),
        _bar(f"... with at least {KEPT:.0%} of the mix's knowledge", "keeps", knowledge, KEPT),
    ]


def _bar(claim: str, verb: str, shares: Sequence[float | None], least: float) -> Bar:
    measured = estimate_known(shares)
    if measured is None:
        missing = f"{shares.count(None)} of {len(shares)}"
        return Bar(claim=claim, measured=f"there was nothing to keep with {missing} seeds")
    return Bar(claim=claim, measured=f"{verb} {measured.text(percent)}", holds=reaches(measured, least))


def figure(results: Sequence[Result]) -> Figure:
    """Behaviour over knowledge: the path of every run, its seeds side by side."""
    drawing, [axis] = panels(1, width=6.4, height=4.6)
    names = [name for name in results[0].runs if name != START]
    shades = ["#b23a48", "#e09f3e", "#9c6644", "#6c757d"]
    colours = dict(zip([name for name in names if name != RECOVERED], shades, strict=False))
    colours[RECOVERED] = COLOURS["opd"]
    for name in names:
        for index, result in enumerate(results):
            rows = [row for row in result.of(name) if row.get("behaviour") is not None]
            xs, ys = [row["knowledge"] for row in rows], [row["behaviour"] for row in rows]
            label = name if index == 0 else None
            axis.plot(xs, ys, color=colours[name], marker=".", linewidth=1.2, alpha=0.7, label=label)
            axis.plot(xs[-1:], ys[-1:], color=colours[name], marker="o", markersize=8)
    for index, result in enumerate(results):
        [row] = result.of(START)
        label = "the original" if index == 0 else None
        axis.plot([row["knowledge"]], [row["behaviour"]], "k*", markersize=11, label=label)
    as_percent(axis, "behaviour: prompts whose instructions are followed")
    axis.set(xlabel="knowledge: questions answered", xlim=(-0.02, 1.02))
    axis.xaxis.set_major_formatter(axis.yaxis.get_major_formatter())
    axis.legend(frameon=False)
    return drawing


EXPERIMENT = Experiment(
    number="E3",
    name="personalisation",
    title="Documents cost a model its manners; OPD from the original brings them back",
    claim=(
        "The post trains Qwen3-8B on internal documents: knowledge rises from 18% to 43% while IF-eval falls "
        "from 85% to 45%. With 30% of chat that the model itself wrote, it is 36% and 79%; OPD from the "
        "original model on chat prompts then makes that 41% and 83%."
    ),
    sizes={
        "smoke": PersonalisationSetting(
            model=ScratchConfig(hidden=32, layers=1, heads=2, mlp=64),
            rank=4,
            company=CompanySetting(kind="parts", products=1, answer_tokens=4),
            chat=ChatSetting(tested=2, max_tokens=4),
            samples=SampleSetting(prompts=2, max_tokens=4),
            document_shares=(1.0, 0.5),
            recovered_share=0.5,
            learn=SupervisedConfig(steps=1, batch_size=2, evaluate_every=1),
            recover=TrainConfig(steps=1, prompts_per_step=2, group_size=1, max_tokens=4, evaluate_every=1),
            kl_clip=None,
        ),
        "small": PersonalisationSetting(
            model=CLERK,
            rank=32,
            company=CompanySetting(kind="parts", products=24, answer_tokens=8),
            chat=ChatSetting(),
            samples=SampleSetting(prompts=640),
            document_shares=(1.0, 0.7),
            recovered_share=0.7,
            learn=SupervisedConfig(
                steps=200, batch_size=32, learning_rate=4e-3, warmup_steps=5, evaluate_every=50
            ),
            recover=TrainConfig(
                steps=40,
                prompts_per_step=64,
                group_size=1,
                max_tokens=24,
                learning_rate=2e-4,
                warmup_steps=5,
                evaluate_every=10,
            ),
            kl_clip=None,
        ),
        "full": PersonalisationSetting(
            model="Qwen/Qwen3-8B",
            rank=128,
            company=CompanySetting(kind="products", products=20, answer_tokens=256),
            chat=ChatSetting(
                chat_file="data/tulu-3.jsonl", ifeval_file="data/ifeval.jsonl", tested=541, max_tokens=4096
            ),
            samples=SampleSetting(prompts=25_600, max_tokens=4096),
            document_shares=(1.0, 0.7, 0.4),
            recovered_share=0.7,
            learn=SupervisedConfig(
                steps=300, batch_size=128, learning_rate=1e-3, decay_to=0.0, evaluate_every=50
            ),
            recover=TrainConfig(
                steps=100,
                prompts_per_step=64,
                group_size=4,
                max_tokens=4096,
                learning_rate=1e-4,
                decay_to=1.0,
                evaluate_every=20,
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
