"""E9. LoRA of several ranks against full fine-tuning, after SFT and after OPD.

One base model, one task, one teacher. Students differ in what is trained: adapters of several ranks, or all
weights. Each imitates the task's answers first, and is then distilled from the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cookbook.advantages import reverse_kl
from cookbook.experiments.base_models import BaseModel
from cookbook.experiments.experiment import Bar, Bench, Experiment, Result
from cookbook.experiments.figures import COLOURS, as_percent, panels
from cookbook.experiments.statistics import Estimate, estimate, is_more, is_no_loss, negated, percent
from cookbook.experiments.students import (
    ON_POLICY,
    Examination,
    evaluated,
    examples_to_imitate,
    fresh_student,
    probed_teacher,
    renderer_of,
    saved_sampler,
    task_named,
    with_fresh_optimizer,
)
from cookbook.loop import Measure, TrainConfig, known_at_first, train
from cookbook.metrics import Row
from cookbook.scratch_model import ScratchConfig
from cookbook.supervised import SupervisedConfig, train_on_examples
from cookbook.table import SUPERVISED_COLUMNS
from tinkerlite import TrainingClient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("sft", "opd")
FULL = 0
"""The rank that stands for all weights."""


@dataclass(frozen=True, kw_only=True)
class LoraRankSetting:
    """Everything that changes the result."""

    model: BaseModel
    """Base model of the students."""
    teacher_model: BaseModel
    """Of the teacher."""
    task: str
    """What is learned."""
    longest: int
    """Tokens of the longest conversation of OpenThoughts to imitate; 0 imitates the task's own answers."""
    examination: Examination
    """How accuracy is measured."""
    ranks: tuple[int, ...]
    """Of the students; 0 trains all weights."""
    teacher_rank: int
    """Of the teacher's adapter."""
    teacher: SupervisedConfig | None
    """How the teacher is made; None takes its model as it is."""
    sft: SupervisedConfig
    """Imitating the task's answers, at LoRA's learning rate."""
    opd: TrainConfig
    """Distillation from the teacher after that, at LoRA's learning rate."""
    full_rate: float
    """Share of LoRA's learning rate that SFT trains all weights with."""
    full_rate_opd: float
    """The same of OPD."""
    kl_clip: float | None
    """Largest per-token KL that counts, in nats."""


def run(bench: Bench, setting: LoraRankSetting) -> None:
    """The teacher, then a student of each rank: SFT, and OPD from there."""
    model, teacher_model = bench.models
    task = task_named(setting.task)
    base = bench.service.create_sampling_client(base_model=model)
    renderer = renderer_of(base)
    measure = setting.examination.measure(task, renderer, bench.seed)

    def imitate(
        run: str, config: SupervisedConfig, trainer: TrainingClient, stream: int, measure: Measure
    ) -> list[Row]:
        examples = examples_to_imitate(task, renderer, 2 * bench.seed + stream, longest=setting.longest)
        with bench.record(run, SUPERVISED_COLUMNS) as record:
            return train_on_examples(config, trainer, examples, measure=measure, record=record)

    if setting.teacher is None:
        sampler = bench.service.create_sampling_client(base_model=teacher_model)
        bench.note("teacher", step=0, **measure(sampler))
    else:
        trainer = fresh_student(bench.service, teacher_model, setting.teacher_rank, bench.seed)
        imitate("teacher", setting.teacher, trainer, 0, measure)
        sampler = saved_sampler(bench.service, trainer, "teacher")
    teacher = probed_teacher(bench, sampler, base.get_tokenizer(), task, renderer)
    start = measure(base)
    bench.note("base", step=0, **start)
    for rank in setting.ranks:
        sft, opd = setting.sft, replace(setting.opd, seed=bench.seed + ON_POLICY)
        if rank == FULL:
            sft = replace(sft, learning_rate=setting.full_rate * sft.learning_rate)
            opd = replace(opd, learning_rate=setting.full_rate_opd * opd.learning_rate)
        student = fresh_student(bench.service, model, rank, bench.seed)
        rows = imitate(run_name("sft", rank), sft, student, 1, known_at_first(measure, start))
        student = with_fresh_optimizer(bench.service, student, "imitated")
        with bench.record(run_name("opd", rank)) as record:
            train(
                opd,
                student,
                task,
                renderer=renderer,
                advantages=reverse_kl(teacher, clip=setting.kl_clip),
                teacher=teacher,
                record=record,
                measure=known_at_first(measure, {name: rows[-1][name] for name in start}),
            )


def run_name(method: str, rank: int) -> str:
    """As in "opd rank 8" and "sft full"."""
    return f"{method} full" if rank == FULL else f"{method} rank {rank}"


def final_accuracies(results: Sequence[Result]) -> dict[str, dict[int, Estimate]]:
    """By method and rank, over seeds; all weights last."""
    ranks = sorted(results[0].header["setting"]["ranks"], key=lambda rank: rank or float("inf"))
    return {
        method: {
            rank: estimate(
                [evaluated(result.of(run_name(method, rank)))[-1]["accuracy"] for result in results]
            )
            for rank in ranks
        }
        for method in METHODS
    }


def tables(results: Sequence[Result]) -> str:
    """One row a rank."""
    found = final_accuracies(results)
    base, teachers = (
        estimate([evaluated(result.of(name))[-1]["accuracy"] for result in results])
        for name in ("base", "teacher")
    )
    lines = ["| trained | after SFT | behind full | after OPD | behind full |", "|---|---|---|---|---|"]
    for rank in found["sft"]:
        cells = [f"LoRA, rank {rank}" if rank else "all weights"]
        for method in METHODS:
            behind = found[method][FULL].mean - found[method][rank].mean if FULL in found[method] else None
            cells += [
                found[method][rank].text(percent),
                "" if behind is None or rank == FULL else percent(behind),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("| post: LoRA, rank 32 | | 13% | | 6% |")
    ends = f"The base model has {base.text(percent)}, the teacher {teachers.text(percent)}."
    return "\n".join([*lines, "", ends])


def behind_full(accuracies: dict[int, Estimate]) -> dict[int, Estimate]:
    """By rank of LoRA, how far it is behind all weights, seed by seed."""
    full = accuracies[FULL].values
    return {
        rank: estimate([all_ - lora for all_, lora in zip(full, accuracy.values, strict=True)])
        for rank, accuracy in accuracies.items()
        if rank != FULL
    }


def _matching_bar(method: str, behind: dict[int, Estimate]) -> Bar:
    """The smallest rank that is no worse than all weights, give or take MARGIN."""
    claim = f"The rank at which LoRA matches full fine-tuning after {method.upper()}"
    verdicts = {rank: is_no_loss(negated(gap)) for rank, gap in behind.items()}
    matching = next((rank for rank, matches in verdicts.items() if matches), None)
    if matching is not None:
        return Bar(claim=claim, measured=f"rank {matching}", holds=True)
    gaps = ", ".join(f"{gap.text(percent)} behind at rank {rank}" for rank, gap in behind.items())
    return Bar(claim=claim, measured=gaps, holds=None if None in verdicts.values() else False)


def bars(results: Sequence[Result]) -> list[Bar]:
    """The rank that matches, by method, and whether OPD is gentler on LoRA."""
    found = final_accuracies(results)
    behind = {method: behind_full(found[method]) for method in METHODS}
    lowest = min(behind["sft"])
    sft, opd = (behind[method][lowest] for method in METHODS)
    less = estimate([one - other for one, other in zip(sft.values, opd.values, strict=True)])
    return [
        *(_matching_bar(method, behind[method]) for method in METHODS),
        Bar(
            claim="LoRA of the lowest rank trails full fine-tuning by less after OPD than after SFT",
            measured=f"{sft.text(percent)} after SFT, {opd.text(percent)} after OPD (rank {lowest})",
            # Where it does not trail after SFT, there is nothing that OPD could make up.
            holds=is_more(less) if is_more(sft) else None,
        ),
    ]


def figure(results: Sequence[Result]) -> Figure:
    """Accuracy by rank, both methods on one plot."""
    found = final_accuracies(results)
    drawing, [axis] = panels(1, width=5.6)
    ranks = list(found["sft"])
    for method in METHODS:
        means = [found[method][rank].mean for rank in ranks]
        halves = [found[method][rank].half or 0.0 for rank in ranks]
        axis.errorbar(
            range(len(ranks)), means, yerr=halves, color=COLOURS[method], marker="o", label=method.upper()
        )
    axis.set_xticks(range(len(ranks)), [str(rank) if rank else "all weights" for rank in ranks])
    axis.set_xlabel("LoRA rank")
    as_percent(axis, "accuracy, held out")
    axis.legend(frameon=False)
    return drawing


SMOKE_SFT = SupervisedConfig(steps=1, batch_size=4, evaluate_every=1, stop_when_collapsed=False)

EXPERIMENT = Experiment(
    number="E9",
    name="lora_rank",
    title="LoRA of several ranks against full fine-tuning",
    claim=(
        "In the post, LoRA of rank 32 trails full fine-tuning by 13% after SFT and by 6% after OPD: learning "
        "from its own samples takes less capacity."
    ),
    sizes={
        "smoke": LoraRankSetting(
            model=ScratchConfig(hidden=32, layers=1, heads=2, mlp=64),
            teacher_model=ScratchConfig(hidden=32, layers=1, heads=2, mlp=64),
            task="sort-letters",
            longest=0,
            examination=Examination(problems=2, samples=0, max_tokens=4),
            ranks=(2, FULL),
            teacher_rank=4,
            teacher=SMOKE_SFT,
            sft=SMOKE_SFT,
            opd=TrainConfig(
                steps=1,
                prompts_per_step=2,
                group_size=2,
                max_tokens=4,
                evaluate_every=1,
                stop_when_collapsed=False,
            ),
            full_rate=0.1,
            full_rate_opd=0.1,
            kl_clip=5.0,
        ),
        "small": LoraRankSetting(
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            teacher_model="HuggingFaceTB/SmolLM2-135M-Instruct",
            task="sort-letters",
            longest=0,
            examination=Examination(problems=200, samples=0, max_tokens=10),
            ranks=(1, 8, 64, FULL),
            teacher_rank=32,
            teacher=SupervisedConfig(steps=40, batch_size=32, evaluate_every=40),
            sft=SupervisedConfig(steps=24, batch_size=32, evaluate_every=12, stop_when_collapsed=False),
            opd=TrainConfig(
                steps=12,
                prompts_per_step=32,
                group_size=4,
                max_tokens=10,
                evaluate_every=6,
                # At 1e-3 the first step, in which Adam moves all as far, spoils what rank 1 has imitated.
                learning_rate=3e-4,
                kl_every=4,
                stop_when_collapsed=False,
            ),
            full_rate=0.1,
            full_rate_opd=0.1,
            kl_clip=5.0,
        ),
        "full": LoraRankSetting(
            model="Qwen/Qwen3-8B-Base",
            teacher_model="Qwen/Qwen3-32B",
            task="deepmath",
            longest=16_384,
            examination=Examination(problems=30, samples=32, max_tokens=32_768),
            ranks=(FULL, 8, 32, 128),  # first what a service may lack
            teacher_rank=FULL,
            teacher=None,
            sft=SupervisedConfig(
                steps=3000, batch_size=128, learning_rate=1e-3, evaluate_every=500, stop_when_collapsed=False
            ),
            opd=TrainConfig(
                steps=150,
                prompts_per_step=512,
                group_size=4,
                max_tokens=4096,
                learning_rate=1e-4,
                decay_to=1.0,
                evaluate_every=25,
            ),
            full_rate=0.1,
            full_rate_opd=0.5,
            kl_clip=None,
        ),
    },
    models=lambda setting: [setting.model, setting.teacher_model],
    run=run,
    tables=tables,
    bars=bars,
    figure=figure,
)
