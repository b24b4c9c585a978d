"""E1. From one supervised checkpoint on: more of the same, RL, or OPD from a larger teacher.

The student has imitated an author's working for a while. Continued SFT, RL and OPD go on from exactly these
weights; OPD twice, on the tokens that it samples, as in the post, and on all of its likeliest ones. What each
pays to reach a target score is read from the ledger: SFT for its updates, and in the other accounting for the
teacher's writing as well; RL for its rollouts; OPD for its own and the teacher's reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from cookbook.advantages import group_relative, reverse_kl
from cookbook.experiments.base_models import BaseModel
from cookbook.experiments.cost_model.experiment import PUBLISHED, PUBLISHED_FREE, PUBLISHED_PAID
from cookbook.experiments.experiment import Bar, Bench, Experiment, Result
from cookbook.experiments.figures import COLOURS, as_percent, curves, panels
from cookbook.experiments.statistics import estimate_ratio, percent, times
from cookbook.experiments.students import (
    ON_POLICY,
    Examination,
    evaluated,
    examples_to_imitate,
    fresh_student,
    probed_teacher,
    renderer_of,
    saved_sampler,
    seeded,
    shape_of,
    shapes_in,
    task_named,
    with_flops,
)
from cookbook.ledger import Ledger, ModelShape, flops_text
from cookbook.loop import TrainConfig, train
from cookbook.metrics import Row
from cookbook.objectives import Objective
from cookbook.scratch_model import ScratchConfig
from cookbook.supervised import SupervisedConfig, train_on_examples
from cookbook.table import SUPERVISED_COLUMNS
from cookbook.top_k import top_k_reverse_kl
from tinkerlite import TrainingClient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR, BAR_PAID = PUBLISHED_FREE, PUBLISHED_PAID
"""How many times dearer continued SFT is than OPD until the target: its data free, its data paid."""
GREEDY = "greedy"
"""The run in which each way's end is examined without drawing."""
TARGET = 0.47
"""Share of the way from the checkpoint's accuracy to the teacher's that counts as there: the post's 70% lies
between its checkpoint's 60% and the 81.4% of its teacher (Qwen3-32B; Qwen3 technical report)."""
LEVELS = (0.2, TARGET, 0.6)
"""Other shares, to see whether what OPD saves depends on the target."""
DISTILLED = {"opd": "OPD", "opd top-k": "OPD, top-k"}
"""Runs and what they are called."""
CONTINUATIONS = {"sft": "SFT", "rl": "RL", **DISTILLED}


@dataclass(frozen=True, kw_only=True)
class ReasoningSetting:
    """Everything that changes the result."""

    student: BaseModel
    """Base model of the student."""
    teacher: BaseModel
    """Base model of the teacher, with the student's tokenizer."""
    rank: int
    """Of the student's LoRA adapter; 0 trains all weights."""
    task: str
    """Problems and grader."""
    longest: int
    """Tokens of the longest conversation of OpenThoughts to imitate; 0 imitates the task's own answers."""
    examination: Examination
    """How accuracy is measured."""
    teacher_training: SupervisedConfig | None
    """How the teacher learns from the same author, all weights; None takes it as it is."""
    checkpoint: SupervisedConfig
    """The student's SFT before the continuations."""
    sft: SupervisedConfig
    """Continued SFT."""
    rl: TrainConfig
    """RL from the checkpoint."""
    opd: TrainConfig
    """OPD from the checkpoint, on sampled tokens."""
    opd_top_k: TrainConfig
    """The same on all of the student's likeliest tokens, of which it records this many alternatives."""
    kl_clip: float | None
    """Largest per-token KL that counts, in nats."""


def run(bench: Bench, setting: ReasoningSetting) -> None:
    """The teacher, the checkpoint, then its continuations."""
    student_model, teacher_model = bench.models
    task = task_named(setting.task)
    student = fresh_student(bench.service, student_model, setting.rank, bench.seed)
    renderer = renderer_of(student)
    measure = setting.examination.measure(task, renderer, bench.seed)
    greedy = replace(setting.examination, samples=0).measure(task, renderer, bench.seed)

    def examine(way: str, trainer: TrainingClient) -> None:
        bench.note(GREEDY, way=way, **greedy(trainer.save_weights_and_get_sampling_client()))

    def imitate(
        run: str, config: SupervisedConfig, trainer: TrainingClient, stream: int, skip: int = 0
    ) -> None:
        """SFT on the author's working, from so many examples of a stream on."""
        examples = examples_to_imitate(task, renderer, 2 * bench.seed + stream, longest=setting.longest)
        examples = islice(examples, skip, None)
        with bench.record(run, SUPERVISED_COLUMNS) as record:
            train_on_examples(config, trainer, examples, measure=measure, record=record)

    if setting.teacher_training is None:
        sampler = bench.service.create_sampling_client(base_model=teacher_model)
        bench.note("teacher", step=0, **measure(sampler))
    else:
        trainer = fresh_student(bench.service, teacher_model, 0, bench.seed)
        imitate("teacher", setting.teacher_training, trainer, 0)
        sampler = saved_sampler(bench.service, trainer, "teacher")
    teacher = probed_teacher(bench, sampler, student.get_tokenizer(), task, renderer)
    teacher_shape = ModelShape.of_tokenizer(sampler.get_tokenizer())
    bench.note("shapes", student=asdict(shape_of(student, setting.rank)), teacher=asdict(teacher_shape))

    imitate("checkpoint", setting.checkpoint, student, 1)
    examine("checkpoint", student)
    checkpoint = student.save_state("checkpoint").result().path

    more = bench.service.create_training_client_from_state(checkpoint)
    imitate("sft", setting.sft, more, 1, skip=setting.checkpoint.steps * setting.checkpoint.batch_size)
    examine("sft", more)
    methods: dict[str, tuple[TrainConfig, Objective]] = {
        "rl": (setting.rl, group_relative),
        "opd": (setting.opd, reverse_kl(teacher, clip=setting.kl_clip)),
        "opd top-k": (setting.opd_top_k, top_k_reverse_kl(teacher)),
    }
    for name, (config, advantages) in methods.items():
        trainer = bench.service.create_training_client_from_state(checkpoint)
        with bench.record(name) as record:
            train(
                seeded(config, bench.seed + ON_POLICY),
                trainer,
                task,
                renderer=renderer,
                advantages=advantages,
                teacher=teacher,
                record=record,
                measure=measure,
            )
        examine(name, trainer)


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """One way on from the checkpoint."""

    final: float
    """Accuracy at its end."""
    free: float
    """Operations until the target, or all there were; supervised answers cost nothing."""
    paid: float
    """The same with the teacher writing them."""
    reached: bool


@dataclass(frozen=True, kw_only=True)
class Seed:
    """What one seed says."""

    checkpoint: float
    teacher: float
    target: float
    before: Continuation
    """The checkpoint's own making."""
    ways: dict[str, Continuation]
    greedy: dict[str, float]
    """Accuracy of the checkpoint and of each way's end without drawing."""

    def ratio(self, price: Price, distilled: str) -> float | None:
        """Operations of another way for one of OPD's; a lower bound where that way never got there.

        None if OPD itself did not.
        """
        if not self.ways[distilled].reached:
            return None
        parts = [self.ways[price.way], *([self.before] if price.in_all else [])]
        return sum(each.paid if price.paid else each.free for each in parts) / self.ways[distilled].free


@dataclass(frozen=True, kw_only=True)
class Price:
    """What OPD's cost is compared with."""

    name: str
    way: str
    paid: bool = False
    """Whether the teacher's writing of the data counts."""
    in_all: bool = False
    """Whether the making of the checkpoint counts, as in the post's figures of SFT."""


PRICES = (
    Price(name="SFT in all", way="sft", in_all=True),
    Price(name="SFT in all, data paid", way="sft", in_all=True, paid=True),
    Price(name="SFT from the checkpoint", way="sft"),
    Price(name="SFT from the checkpoint, data paid", way="sft", paid=True),
    Price(name="RL", way="rl"),
)


def figures_of(result: Result, share: float = TARGET) -> Seed:
    """Operations until that share of the way from the checkpoint's accuracy to the teacher's."""
    checkpoint = evaluated(result.of("checkpoint"))[-1]["accuracy"]
    teacher = evaluated(result.of("teacher"))[-1]["accuracy"]
    target = checkpoint + share * (teacher - checkpoint)
    greedy = {row["way"]: row["accuracy"] for row in result.of(GREEDY)}
    before = _priced(result, "checkpoint")[-1][1]
    return Seed(
        checkpoint=checkpoint,
        teacher=teacher,
        target=target,
        before=Continuation(
            final=checkpoint, free=before.with_free_data, paid=before.with_paid_data, reached=True
        ),
        ways={name: _continuation(result, name, target) for name in CONTINUATIONS},
        greedy=greedy,
    )


def costs(result: Result, name: str) -> list[tuple[Row, float, float]]:
    """Evaluated rows of a continuation, with the operations so far: data free, data paid."""
    return [(row, cost.with_free_data, cost.with_paid_data) for row, cost in _priced(result, name)]


def _priced(result: Result, name: str) -> list[tuple[Row, Ledger]]:
    shapes = shapes_in(result.of("shapes"))
    return with_flops(result.of(name), shapes["student"], shapes["teacher"])


def _continuation(result: Result, name: str, target: float) -> Continuation:
    rows = costs(result, name)
    # The checkpoint itself is no continuation of it.
    reached = [entry for entry in rows[1:] if entry[0]["accuracy"] >= target]
    _, free, paid = (reached or rows[-1:])[0]
    return Continuation(final=rows[-1][0]["accuracy"], free=free, paid=paid, reached=bool(reached))


def tables(results: Sequence[Result]) -> str:
    """Where each way ended and what the target cost, then what OPD saved; the post's figures last."""
    seeds = [(str(result.seed), figures_of(result)) for result in results]
    ways = list(CONTINUATIONS.values())
    sft, opd = PUBLISHED["SFT-2M"], PUBLISHED["OPD"]
    paid = flops_text(sft.with_paid_data)
    parts = [
        _table(
            ["seed", "checkpoint", "teacher", "target", *(f"{name}: end" for name in ways)],
            [
                (
                    number,
                    *map(percent, (seed.checkpoint, seed.teacher, seed.target)),
                    *(percent(seed.ways[run].final) for run in CONTINUATIONS),
                )
                for number, seed in seeds
            ]
            + [("post", "60%", "81.4%", "70%", "~70%", "68%", "70%", "")],
        ),
        _table(
            ["without drawing (greedy)", "checkpoint", *(f"{name}: end" for name in ways)],
            [
                (f"seed {number}", *(percent(seed.greedy[way]) for way in ("checkpoint", *CONTINUATIONS)))
                for number, seed in seeds
            ],
        ),
        _table(
            ["FLOPs to the target", "checkpoint", *ways, "checkpoint, data paid", "SFT, data paid"],
            [
                (
                    f"seed {number}",
                    flops_text(seed.before.free),
                    *(_cost_text(seed.ways[run]) for run in CONTINUATIONS),
                    flops_text(seed.before.paid),
                    _cost_text(seed.ways["sft"], paid=True),
                )
                for number, seed in seeds
            ]
            + [
                ("post", "", flops_text(sft.with_free_data), "", flops_text(opd.with_free_data), "", "", paid)
            ],
        ),
        _table(
            ["for one of", "until so far from checkpoint to teacher", *(price.name for price in PRICES)],
            [
                (
                    name,
                    percent(share) + (" (target)" if share == TARGET else ""),
                    *(
                        _ratio_text([figures_of(each, share) for each in results], price, run)
                        for price in PRICES
                    ),
                )
                for run, name in DISTILLED.items()
                for share in LEVELS
            ]
            + [("OPD, post", percent(TARGET), *map(times, _published_ratios()), "")],
        ),
    ]
    return "\n\n".join(parts) + (
        "\n\n\\> and at least: the target was not reached with the operations spent. The post's figures of "
        "SFT are of all its data, the checkpoint's included."
    )


def _published_ratios() -> list[float]:
    """The post's, in the order of `PRICES`; from the checkpoint on is what remains without its first 400k."""
    first, whole, opd = (PUBLISHED[name] for name in ("SFT-400K", "SFT-2M", "OPD"))
    return [
        PUBLISHED_FREE,
        PUBLISHED_PAID,
        (whole.with_free_data - first.with_free_data) / opd.with_free_data,
        (whole.with_paid_data - first.with_paid_data) / opd.with_free_data,
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cost_text(way: Continuation, *, paid: bool = False) -> str:
    cost = flops_text(way.paid if paid else way.free)
    return cost if way.reached else f"> {cost}"


def _ratio_text(seeds: Sequence[Seed], price: Price, distilled: str) -> str:
    ratios = [ratio for seed in seeds if (ratio := seed.ratio(price, distilled)) is not None]
    if len(ratios) < len(seeds):
        return f"not there with {len(seeds) - len(ratios)} of {len(seeds)} seeds"
    bound = "" if all(seed.ways[price.way].reached for seed in seeds) else "at least "
    return bound + estimate_ratio(ratios).text


def bars(results: Sequence[Result]) -> list[Bar]:
    """Against SFT in both accountings, in all and from the checkpoint on, and against RL."""
    seeds = [figures_of(result) for result in results]
    in_all, in_all_paid, more, more_paid, rl = PRICES
    return [
        _bar(claim.format(name), seeds, price, distilled, least)
        for distilled, name in DISTILLED.items()
        for claim, price, least in (
            (
                f"{{}}: reaches the target with at most 1/{BAR:.0f} of the FLOPs of SFT, all counted",
                in_all,
                BAR,
            ),
            (f"... and at most 1/{BAR_PAID} if the teacher has to write the SFT data", in_all_paid, BAR_PAID),
            (f"... and at most 1/{BAR:.0f} of what SFT takes from the checkpoint on", more, BAR),
            (f"... and at most 1/{BAR_PAID} of that with the teacher's writing", more_paid, BAR_PAID),
            ("... and with fewer FLOPs than RL", rl, 1.0),
        )
    ]


def _bar(claim: str, seeds: Sequence[Seed], price: Price, distilled: str, least: float) -> Bar:
    measured = _ratio_text(seeds, price, distilled)
    ratios = [ratio for seed in seeds if (ratio := seed.ratio(price, distilled)) is not None]
    if len(ratios) < len(seeds):
        return Bar(claim=claim, measured=measured, holds=False)
    holds = estimate_ratio(ratios).reaches(least)
    # A lower bound below the bar says nothing either way.
    is_bound = not all(seed.ways[price.way].reached for seed in seeds)
    return Bar(claim=claim, measured=measured, holds=None if is_bound and not holds else holds)


def figure(results: Sequence[Result]) -> Figure:
    """Accuracy by operations in both accountings, and by update."""
    drawing, axes = panels(3)
    for name, label in CONTINUATIONS.items():
        rows = [costs(result, name) for result in results]
        style = {
            "label": label,
            "colour": COLOURS[name.removesuffix(" top-k")],
            "linestyle": "--" if name == "opd" else "-",
        }
        curves(axes[0], [[(free, row["accuracy"]) for row, free, _ in seed[1:]] for seed in rows], **style)
        curves(axes[1], [[(paid, row["accuracy"]) for row, _, paid in seed[1:]] for seed in rows], **style)
        curves(axes[2], [[(row["step"], row["accuracy"]) for row, _, _ in seed] for seed in rows], **style)
    for axis in axes:
        for result in results:
            axis.axhline(figures_of(result).target, color=COLOURS["teacher"], linewidth=0.8, linestyle=":")
        as_percent(axis, "accuracy, held out (dotted: targets)")
        axis.legend(frameon=False)
    for axis, label in zip(axes, ("FLOPs, SFT data free", "FLOPs, SFT data paid"), strict=False):
        axis.set_xscale("log")
        axis.set_xlabel(label)
    axes[2].set_xlabel("updates")
    return drawing


SMOKE_SFT = SupervisedConfig(
    steps=1, batch_size=4, evaluate_every=1, learning_rate=1e-3, stop_when_collapsed=False
)
SMOKE = TrainConfig(
    steps=1,
    prompts_per_step=2,
    group_size=2,
    max_tokens=6,
    evaluate_every=1,
    decay_to=1.0,
    stop_when_collapsed=False,
)
SMALL_SFT = SupervisedConfig(batch_size=64, learning_rate=2e-3, evaluate_every=100, stop_when_collapsed=False)
SMALL = TrainConfig(
    steps=40,
    prompts_per_step=16,
    group_size=1,
    max_tokens=24,
    evaluate_every=2,
    learning_rate=5e-4,
    kl_every=2,
    stop_when_collapsed=False,
)

FULL_OPD = TrainConfig(
    steps=150,
    prompts_per_step=512,
    group_size=4,
    max_tokens=4096,
    learning_rate=1e-4,
    decay_to=1.0,
    evaluate_every=20,
)

EXPERIMENT = Experiment(
    number="E1",
    name="reasoning",
    title="OPD against more SFT and RL, from one checkpoint",
    claim=(
        "From a supervised checkpoint at 60% of AIME'24 (Qwen3-8B-Base on 400k prompts of OpenThoughts-3), "
        "OPD reaches 70% in about 150 steps; SFT would take about 2M prompts, extrapolated, and Qwen's RL "
        "reached 67.6% in 17,920 GPU hours."
    ),
    sizes={
        "smoke": ReasoningSetting(
            student=ScratchConfig(hidden=32, layers=1, heads=2, mlp=64),
            teacher=ScratchConfig(hidden=48, layers=1, heads=2, mlp=64),
            rank=0,
            task="nomenclator",
            longest=0,
            examination=Examination(problems=3, max_tokens=6),
            teacher_training=SMOKE_SFT,
            checkpoint=SMOKE_SFT,
            sft=SMOKE_SFT,
            rl=SMOKE,
            opd=SMOKE,
            opd_top_k=replace(SMOKE, alternatives=4),
            kl_clip=5.0,
        ),
        "small": ReasoningSetting(
            student=ScratchConfig(hidden=96, layers=2, heads=4, mlp=256),
            teacher=ScratchConfig(hidden=192, layers=3, heads=6, mlp=512),
            rank=0,
            task="nomenclator",
            longest=0,
            examination=Examination(problems=300, max_tokens=24),
            teacher_training=replace(SMALL_SFT, steps=700),
            checkpoint=replace(SMALL_SFT, steps=200, learning_rate=3e-3),
            # At 2e-3 the first updates undo part of the checkpoint, whose rate had decayed to nothing.
            sft=replace(SMALL_SFT, steps=500, batch_size=16, evaluate_every=25, learning_rate=1e-3),
            rl=replace(SMALL, prompts_per_step=64, group_size=4, steps=20, learning_rate=1e-3),
            opd=SMALL,
            # Its gradients have less noise, and bear a larger rate.
            opd_top_k=replace(SMALL, alternatives=20, learning_rate=1e-3),
            kl_clip=5.0,
        ),
        "full": ReasoningSetting(
            student="Qwen/Qwen3-8B-Base",
            teacher="Qwen/Qwen3-32B",
            rank=128,
            task="deepmath",
            longest=16_384,
            examination=Examination(problems=30, samples=32, max_tokens=32_768),
            teacher_training=None,
            checkpoint=SupervisedConfig(
                steps=3000, batch_size=128, learning_rate=1e-3, evaluate_every=500, stop_when_collapsed=False
            ),
            sft=SupervisedConfig(
                steps=12_000,
                batch_size=128,
                learning_rate=1e-3,
                evaluate_every=1000,
                stop_when_collapsed=False,
            ),
            rl=TrainConfig(
                steps=400,
                prompts_per_step=128,
                group_size=16,
                max_tokens=16_384,
                learning_rate=1e-4,
                decay_to=1.0,
                evaluate_every=20,
                kl_every=20,
            ),
            opd=FULL_OPD,
            opd_top_k=replace(FULL_OPD, alternatives=20),
            kl_clip=None,
        ),
    },
    models=lambda setting: [setting.student, setting.teacher],
    run=run,
    tables=tables,
    bars=bars,
    figure=figure,
)
