"""E4. RL makes a teacher; OPD copies it into the base model that RL began with.

Both students start from the same weights and see the same kind of problems. What RL had to find, OPD only
has to follow, so the difference is what the search has cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cookbook.advantages import group_relative, reverse_kl
from cookbook.experiments.base_models import BaseModel
from cookbook.experiments.experiment import Bar, Bench, Experiment, Result
from cookbook.experiments.figures import COLOURS, as_percent, curves, panels
from cookbook.experiments.statistics import estimate_ratio, percent, times
from cookbook.experiments.students import (
    Examination,
    fresh_student,
    probed_teacher,
    renderer_of,
    saved_sampler,
    seeded,
    shapes_in,
    task_named,
    with_flops,
)
from cookbook.ledger import ModelShape, flops_text
from cookbook.loop import TrainConfig, train
from cookbook.metrics import Row
from cookbook.scratch_model import ScratchConfig
from cookbook.tasks import with_format_credit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REACHED = 0.95
"""Share of the teacher's accuracy at which a student has arrived: evaluations have noise of a few percent."""
PUBLISHED_STEPS, PUBLISHED_COMPUTE = "7 to 10", "50 to 100"


@dataclass(frozen=True, kw_only=True)
class RLTeacherSetting:
    """Everything that changes the result."""

    model: BaseModel
    """Base model of both students."""
    task: str
    """What RL is rewarded for."""
    examination: Examination
    """How accuracy is measured."""
    rank: int
    """Of both LoRA adapters."""
    rl: TrainConfig
    """The teacher's training."""
    opd: TrainConfig
    """The copy's training."""
    kl_clip: float | None
    """Largest per-token KL that counts, in nats."""


def run(bench: Bench, setting: RLTeacherSetting) -> None:
    """RL, then OPD from its last weights."""
    [model] = bench.models
    task = task_named(setting.task)
    # Exact answers alone would not start RL on a base model that answers in sentences.
    rewarded = with_format_credit(task)
    student = fresh_student(bench.service, model, setting.rank, bench.seed)
    renderer = renderer_of(student)
    measure = setting.examination.measure(task, renderer, bench.seed)
    shape = ModelShape.of_tokenizer(student.get_tokenizer(), rank=setting.rank)
    bench.note("shapes", student=asdict(shape), teacher=asdict(shape))
    with bench.record("rl") as record:
        train(
            seeded(setting.rl, bench.seed),
            student,
            rewarded,
            renderer=renderer,
            advantages=group_relative,
            record=record,
            measure=measure,
        )
    trained = saved_sampler(bench.service, student, "rl")
    teacher = probed_teacher(bench, trained, student.get_tokenizer(), task, renderer)
    copy = fresh_student(bench.service, model, setting.rank, bench.seed)
    with bench.record("opd") as record:
        train(
            seeded(setting.opd, bench.seed),
            copy,
            task,
            renderer=renderer,
            advantages=reverse_kl(teacher, clip=setting.kl_clip),
            teacher=teacher,
            record=record,
            measure=measure,
        )


@dataclass(frozen=True, kw_only=True)
class Seed:
    """What one seed says."""

    seed: int
    teacher: float
    """The accuracy that RL ended with."""
    steps: dict[str, int | None]
    """Updates until REACHED of it, by method; None if it was not."""
    flops: dict[str, float | None]
    """Operations until then."""
    kl: tuple[float, float]
    """Reverse KL of the copy, first and last."""

    def ratio(self, of: str) -> float | None:
        """RL's steps (or flops) for one of OPD's."""
        values = getattr(self, of)
        return values["rl"] / values["opd"] if values["rl"] and values["opd"] else None


def figures_of(result: Result) -> Seed:
    """Steps and operations to the teacher's score."""
    teacher = with_cost(result, "rl")[-1][0]["accuracy"]
    steps: dict[str, int | None] = {}
    flops: dict[str, float | None] = {}
    for run in ("rl", "opd"):
        reached = [
            (row["step"], cost)
            for row, cost in with_cost(result, run)
            if row["accuracy"] >= REACHED * teacher > 0
        ]
        steps[run], flops[run] = reached[0] if reached else (None, None)
    kl = [row["reverse_kl"] for row in result.of("opd") if row.get("reverse_kl") is not None]
    return Seed(seed=result.seed, teacher=teacher, steps=steps, flops=flops, kl=(kl[0], kl[-1]))


def with_cost(result: Result, run: str) -> list[tuple[Row, float]]:
    """Evaluated rows of a run, with the operations that led there."""
    shapes = shapes_in(result.of("shapes"))
    return [
        (row, cost.with_free_data)
        for row, cost in with_flops(result.of(run), shapes["student"], shapes["teacher"])
    ]


def tables(results: Sequence[Result]) -> str:
    """One row a seed, then the post's."""
    lines = [
        "| seed | RL | RL: steps | OPD: steps | ratio | RL: FLOPs | OPD: FLOPs | ratio | OPD: KL |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for seed in map(figures_of, results):
        cells = (
            str(seed.seed),
            percent(seed.teacher),
            _or_never(seed.steps["rl"], str),
            _or_never(seed.steps["opd"], str),
            _or_never(seed.ratio("steps"), times),
            _or_never(seed.flops["rl"], flops_text),
            _or_never(seed.flops["opd"], flops_text),
            _or_never(seed.ratio("flops"), times),
            f"{seed.kl[0]:.2f} to {seed.kl[1]:.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(f"| post | | 70 | under 10 | {PUBLISHED_STEPS}x | | | {PUBLISHED_COMPUTE}x | to near 0 |")
    return (
        "\n".join(lines)
        + f"\n\nSteps and FLOPs until {REACHED:.0%} of the accuracy that RL ended with (first column)."
    )


def _or_never(value: Any, show: Callable[[Any], str]) -> str:
    return "never" if value is None else show(value)


def bars(results: Sequence[Result]) -> list[Bar]:
    """The two ratios."""
    seeds = [figures_of(result) for result in results]
    return [
        _bar("OPD reaches the RL teacher's score in at most 1/7 of RL's steps", seeds, "steps", 7),
        _bar("... and for at most 1/50 of its compute", seeds, "flops", 50),
    ]


def _bar(claim: str, seeds: Sequence[Seed], of: str, least: float) -> Bar:
    """Over the seeds in which RL made a teacher: where it learned nothing, there is nothing to copy."""
    taught = [seed for seed in seeds if seed.teacher > 0]
    ratios = [ratio for seed in taught if (ratio := seed.ratio(of)) is not None]
    remarks: list[str] = []
    if len(taught) < len(seeds):
        remarks.append(f"RL made no teacher with {len(seeds) - len(taught)} of {len(seeds)} seeds")
    if len(ratios) < len(taught):
        remarks.append(f"OPD did not get there with {len(taught) - len(ratios)}")
    if not ratios:
        return Bar(claim=claim, measured="; ".join(remarks), holds=False if taught else None)
    mean = estimate_ratio(ratios)
    measured = "; ".join([f"1/{mean.mean:.1f}: {mean.text}", *remarks])
    return Bar(claim=claim, measured=measured, holds=len(ratios) == len(taught) and mean.reaches(least))


def figure(results: Sequence[Result]) -> Figure:
    """Accuracy by steps and by operations, and the copy's KL."""
    drawing, (by_step, by_flops, kl) = panels(3)
    for run in ("rl", "opd"):
        points = [with_cost(result, run) for result in results]
        of_steps = [[(row["step"], row["accuracy"]) for row, _ in seed] for seed in points]
        of_flops = [[(cost, row["accuracy"]) for row, cost in seed if cost] for seed in points]
        curves(by_step, of_steps, label=run.upper(), colour=COLOURS[run])
        curves(by_flops, of_flops, label=run.upper(), colour=COLOURS[run])
    by_flops.set_xscale("log")
    by_step.set_xlabel("updates")
    by_flops.set_xlabel("FLOPs")
    for axis in (by_step, by_flops):
        as_percent(axis, "accuracy, held out")
        axis.legend(frameon=False)
    measured = [
        [(row["step"], row["reverse_kl"]) for row in result.of("opd") if row.get("reverse_kl") is not None]
        for result in results
    ]
    curves(kl, measured, label="OPD", colour=COLOURS["opd"])
    kl.set(xlabel="updates", ylabel="reverse KL to the RL teacher, nats per token")
    return drawing


SMOKE = TrainConfig(
    steps=1,
    prompts_per_step=2,
    group_size=2,
    max_tokens=4,
    evaluate_every=1,
    decay_to=1.0,
    stop_when_collapsed=False,
)

EXPERIMENT = Experiment(
    number="E4",
    name="rl_teacher",
    title="RL makes a teacher, OPD copies it into the base model",
    claim=(
        "The post distils a policy that RL made (Qwen3-8B-Base, LoRA rank 128, DeepMath) back into the base "
        "model: its score is reached in 7 to 10 times fewer steps (under 10 against 70), for 50 to 100 times "
        "less compute."
    ),
    sizes={
        "smoke": RLTeacherSetting(
            model=ScratchConfig(hidden=32, layers=1, heads=2, mlp=64),
            task="larger",
            examination=Examination(problems=2, samples=0, max_tokens=4),
            rank=4,
            rl=SMOKE,
            opd=SMOKE,
            kl_clip=5.0,
        ),
        "small": RLTeacherSetting(
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            task="larger",
            examination=Examination(problems=200, samples=0, max_tokens=4),
            rank=32,
            rl=TrainConfig(
                steps=60,
                prompts_per_step=32,
                group_size=4,
                max_tokens=4,
                evaluate_every=2,
                stop_when_collapsed=False,
                learning_rate=5e-4,
            ),
            opd=TrainConfig(
                steps=16,
                prompts_per_step=32,
                group_size=4,
                max_tokens=4,
                evaluate_every=1,
                stop_when_collapsed=False,
                learning_rate=1e-3,
            ),
            kl_clip=5.0,
        ),
        "full": RLTeacherSetting(
            model="Qwen/Qwen3-8B-Base",
            task="deepmath",
            examination=Examination(problems=30, samples=32, max_tokens=16_384),
            rank=128,
            rl=TrainConfig(
                steps=80,
                prompts_per_step=64,
                group_size=16,
                max_tokens=16_384,
                learning_rate=1e-4,
                decay_to=1.0,
                evaluate_every=5,
            ),
            opd=TrainConfig(
                steps=20,
                prompts_per_step=64,
                group_size=4,
                max_tokens=4096,
                learning_rate=1e-4,
                decay_to=1.0,
                evaluate_every=1,
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
