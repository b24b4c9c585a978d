"""E2. What the methods cost, in floating-point operations, and the post's two comparisons.

The first table needs no run: the post's published operations, put through the ledger that every recipe here
uses. The second is that ledger for short runs of the three recipes, from their own token counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from cookbook.advantages import group_relative, reverse_kl
from cookbook.experiments.base_models import BaseModel
from cookbook.experiments.experiment import Bar, Bench, Experiment, Result
from cookbook.experiments.figures import panels
from cookbook.experiments.statistics import times
from cookbook.experiments.students import (
    fresh_student,
    renderer_of,
    seeded,
    shapes_in,
    task_named,
)
from cookbook.ledger import Ledger, ModelShape, flops_text, forward_flops, ledger, training_flops
from cookbook.loop import TrainConfig, train
from cookbook.scratch_model import ScratchConfig
from cookbook.supervised import SupervisedConfig, train_supervised
from cookbook.table import SUPERVISED_COLUMNS
from cookbook.teachers import Teacher
from cookbook.work import Work, sampling, scoring, training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED = {
    "SFT-400K": Ledger(data=8.5e20, training=3.8e20),
    "SFT-2M": Ledger(data=3.4e21, training=1.5e21),
    "OPD": Ledger(scoring=8.4e19, training=8.2e19),
}
"""The post's table, by method; it does not split the student's operations into sampling and training."""
PUBLISHED_FREE, PUBLISHED_PAID = 9.0, 29.5
"""SFT-2M over OPD, with SFT's data free and with the teacher paid for writing it."""

STUDENT = ModelShape(
    hidden=4096,
    layers=36,
    heads=32,
    kv_heads=8,
    head_size=128,
    intermediate=12288,
    vocabulary=151936,
    trains_adapter=False,
)
TEACHER = replace(STUDENT, hidden=5120, layers=64, heads=64, intermediate=25600)
"""Qwen3-8B and Qwen3-32B, by their published configurations."""
ROLLOUTS, ROLLOUT_TOKENS, PROMPT_TOKENS = 77_000 * 4, 4096, 100
"""Of the post's OPD: 77k prompts, four samples each, as long as its recipe lets them be. Prompts: a guess."""


@dataclass(frozen=True, kw_only=True)
class CostSetting:
    """Short runs of the three recipes."""

    model: BaseModel
    """Base model of every student, and, untrained, the teacher."""
    task: str
    """What they work at; nobody has to get anywhere."""
    rank: int
    """Of the LoRA adapters."""
    sft: SupervisedConfig
    """The supervised recipe; as many examples as the others have completions."""
    on_policy: TrainConfig
    """RL and OPD."""


def run(bench: Bench, setting: CostSetting) -> None:
    """Each recipe once."""
    [model] = bench.models
    task = task_named(setting.task)
    teacher_sampler = bench.service.create_sampling_client(base_model=model)
    tokenizer = teacher_sampler.get_tokenizer()
    renderer = renderer_of(teacher_sampler)
    shape = ModelShape.of_tokenizer(tokenizer, rank=setting.rank)
    bench.note("shapes", student=asdict(shape), teacher=asdict(replace(shape, rank=0)))
    student = fresh_student(bench.service, model, setting.rank, bench.seed)
    with bench.record("sft", SUPERVISED_COLUMNS) as record:
        train_supervised(seeded(setting.sft, bench.seed), student, task, renderer=renderer, record=record)
    teacher = Teacher(teacher_sampler, tokenizer)
    for name, advantages in (("rl", group_relative), ("opd", reverse_kl(teacher))):
        student = fresh_student(bench.service, model, setting.rank, bench.seed)
        config = seeded(setting.on_policy, bench.seed)
        with bench.record(name) as record:
            train(
                config,
                student,
                task,
                renderer=renderer,
                advantages=advantages,
                teacher=teacher,
                record=record,
            )


def from_shapes() -> Ledger:
    """The post's OPD run as this ledger sees it: from the two models' shapes and the number of tokens."""
    length = PROMPT_TOKENS + ROLLOUT_TOKENS

    def all_rollouts(one: Work) -> Work:
        return Work(**{phase: ROLLOUTS * count for phase, count in asdict(one).items()})

    return Ledger(
        sampling=forward_flops(STUDENT, all_rollouts(sampling(PROMPT_TOKENS, [ROLLOUT_TOKENS]))),
        training=training_flops(STUDENT, all_rollouts(training(length - 1, ROLLOUT_TOKENS))),
        scoring=forward_flops(TEACHER, all_rollouts(scoring(length))),
    )


def ratios() -> tuple[float, float]:
    """SFT-2M over OPD from the published operations: data free, data paid."""
    sft, opd = PUBLISHED["SFT-2M"], PUBLISHED["OPD"]
    return sft.with_free_data / opd.with_free_data, sft.with_paid_data / opd.with_paid_data


def tables(results: Sequence[Result]) -> str:
    """The post's operations, then our recipes'."""
    opd = PUBLISHED["OPD"]
    lines = [
        "| the post's run | student | teacher scores | teacher writes data | data free | data paid |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in PUBLISHED.items():
        compared = (
            times(entry.with_free_data / opd.with_free_data),
            times(entry.with_paid_data / opd.with_paid_data),
        )
        cells = (name, *map(flops_text, (entry.student, entry.scoring, entry.data)), *compared)
        lines.append(f"| {' | '.join(cells)} |")
    ours = from_shapes()
    cells = ("OPD, from the models' shapes", *map(flops_text, (ours.student, ours.scoring, ours.data)))
    lines.append(f"| {' | '.join(cells)} | {times(ours.with_free_data / opd.with_free_data)} | |")
    lines += [
        "",
        "| a recipe here | samples | trains | teacher scores | data free | teacher writes data | data paid |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in ledgers(results[0]).items():
        phases = (entry.sampling, entry.training, entry.scoring, entry.with_free_data, entry.data)
        cells = (name.upper(), *map(flops_text, (*phases, entry.with_paid_data)))
        lines.append(f"| {' | '.join(cells)} |")
    counted = [sum(r.get("completion_tokens", 0) for r in results[0].of(run)[:-1]) for run in ("rl", "opd")]
    lines += [
        "",
    ]
    note = (
        "The last two columns of the first table are multiples of OPD's cost. The recipes made as many "
        f"completions, of {counted[0]} (RL) and {counted[1]} (OPD) tokens in all."
    )
    return "\n".join([*lines, note])


def ledgers(result: Result) -> dict[str, Ledger]:
    """By recipe."""
    shapes = shapes_in(result.of("shapes"))
    return {
        name: ledger(result.of(name), shapes["student"], shapes["teacher"]) for name in ("sft", "rl", "opd")
    }


def bars(results: Sequence[Result]) -> list[Bar]:
    """The post's ratios, and how the shapes agree with its operations."""
    free, paid = ratios()
    ours, published = from_shapes(), PUBLISHED["OPD"]
    agreement = ours.with_free_data / published.with_free_data
    return [
        Bar(
            claim=f"{PUBLISHED_FREE}x and {PUBLISHED_PAID}x from the post's published operations",
            measured=f"{times(free)} with SFT's data free, {times(paid)} with it paid",
            holds=(round(free, 1), round(paid, 1)) == (PUBLISHED_FREE, PUBLISHED_PAID),
        ),
        Bar(
            claim="Shapes and token counts alone give the post's operations of OPD within a fifth",
            measured=f"{agreement:.2f} of them, from rollouts of {ROLLOUT_TOKENS} tokens",
            holds=abs(agreement - 1) < 0.2,
        ),
    ]


PHASES = {
    "sampling": ("student samples", "#00798c"),
    "training": ("student trains", "#30638e"),
    "scoring": ("teacher scores", "#edae49"),
    "data": ("teacher writes data", "#bbbbbb"),
}


def figure(results: Sequence[Result]) -> Figure:
    """Operations by phase: the post's, and those of the recipes here."""
    drawing, (published, ours) = panels(2)
    for axis, entries in ((published, PUBLISHED), (ours, ledgers(results[0]))):
        bottom = [0.0] * len(entries)
        for phase, (label, colour) in PHASES.items():
            values = [getattr(entry, phase) for entry in entries.values()]
            axis.bar([name.upper() for name in entries], values, bottom=bottom, color=colour, label=label)
            bottom = [below + value for below, value in zip(bottom, values, strict=True)]
        axis.set_ylabel("FLOPs")
    published.set_title("the post's runs, as published (the student's as training)", fontsize=9)
    ours.set_title("recipes here, as many completions each", fontsize=9)
    ours.legend(frameon=False, fontsize=8)
    return drawing


SMOKE = TrainConfig(
    steps=1,
    prompts_per_step=2,
    group_size=2,
    max_tokens=4,
    evaluate_every=1,
    held_out=2,
    decay_to=1.0,
    stop_when_collapsed=False,
)

EXPERIMENT = Experiment(
    number="E2",
    name="cost_model",
    title="What the methods cost, and the post's 9x and 30x",
    claim=(
        "From one SFT checkpoint, OPD reaches what five times the SFT data would: for 9.0 times fewer "
        "operations if that data is there, and 29.5 times fewer if the teacher has to write it."
    ),
    sizes={
        "smoke": CostSetting(
            model=ScratchConfig(hidden=32, layers=1, heads=2, mlp=64),
            task="sums",
            rank=4,
            sft=SupervisedConfig(steps=1, batch_size=4, evaluate_every=1, held_out=2, max_tokens=4),
            on_policy=SMOKE,
        ),
        "small": CostSetting(
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            task="sums",
            rank=32,
            sft=SupervisedConfig(steps=3, batch_size=64, evaluate_every=3, held_out=10, max_tokens=16),
            on_policy=TrainConfig(
                steps=3, prompts_per_step=16, group_size=4, max_tokens=16, evaluate_every=3, held_out=10
            ),
        ),
    },
    models=lambda setting: [setting.model],
    run=run,
    tables=tables,
    bars=bars,
    figure=figure,
)
