"""E6. A model learns from itself: by SFT on its own samples, and by OPD with itself as the teacher.

Neither should change anything: at temperature 1 the samples are the model's own distribution, so the
expected gradient of both is zero. But every batch of samples is a finite one. After one step on it the
student is another model, the samples are no longer its own, and SFT goes on copying their accidents;
OPD samples anew, and the teacher, which stays, pulls the student back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cookbook.advantages import reverse_kl
from cookbook.examples import repeated
from cookbook.experiments.base_models import BaseModel
from cookbook.experiments.conversation import ChatSetting, SampleSetting, columns, last_measured
from cookbook.experiments.experiment import Bar, Bench, Experiment, Result
from cookbook.experiments.figures import COLOURS, as_percent, panels
from cookbook.experiments.school import CLERK
from cookbook.experiments.statistics import (
    MARGIN,
    Estimate,
    all_hold,
    estimate,
    is_no_loss,
    percent,
    reaches,
)
from cookbook.experiments.students import fresh_student, renderer_of, seeded
from cookbook.loop import TrainConfig, known_at_first, train
from cookbook.measures import kl_measure, together
from cookbook.scratch_model import ScratchConfig
from cookbook.supervised import SupervisedConfig, train_on_examples
from cookbook.teachers import Teacher

if TYPE_CHECKING:
    from matplotlib.figure import Figure

START = "start"
METHODS = ("sft", "opd")
MOVED = 0.01
"""Nats per token from the start at which a learning rate has moved the model."""


@dataclass(frozen=True, kw_only=True)
class SelfDistillationSetting:
    """Everything that changes the result. Both methods learn from as many completions: SFT from a data set,
    again and again, OPD from new ones at every step."""

    model: BaseModel
    """Student and teacher."""
    rank: int
    """Of all LoRA adapters."""
    learning_rates: tuple[float, ...]
    chat: ChatSetting
    samples: SampleSetting
    """What SFT learns from."""
    kl_prompts: int
    """Prompts on whose replies the distance from the start is measured."""
    sft: SupervisedConfig
    """But for the learning rate."""
    opd: TrainConfig
    """But for the learning rate."""


def run_name(method: str, rate: float) -> str:
    """The run of a method and a learning rate."""
    return f"{method} {rate:g}"


def run(bench: Bench, setting: SelfDistillationSetting) -> None:
    """Both methods at every learning rate."""
    [model] = bench.models
    original = bench.service.create_sampling_client(base_model=model)
    renderer = renderer_of(original)
    teacher = Teacher(original, original.get_tokenizer())
    chat = setting.chat.prompts()
    distance = kl_measure(
        Teacher(original, original.get_tokenizer()),
        chat,
        prompts=setting.kl_prompts,
        renderer=renderer,
        max_tokens=setting.samples.max_tokens,
        seed=bench.seed,
    )
    measure = together(setting.chat.behaviour(renderer, bench.seed), distance)
    start = measure(original)
    bench.note(START, step=0, **start)
    samples = setting.samples.examples(original, chat, renderer, bench.seed)
    for rate in setting.learning_rates:
        student = fresh_student(bench.service, model, setting.rank, bench.seed)
        with bench.record(run_name("sft", rate), columns(kl="kl_to_start")) as record:
            train_on_examples(
                replace(seeded(setting.sft, bench.seed), learning_rate=rate),
                student,
                repeated(samples, bench.seed),
                measure=known_at_first(measure, start),
                record=record,
            )
        student = fresh_student(bench.service, model, setting.rank, bench.seed)
        with bench.record(run_name("opd", rate), columns(kl="kl_to_start")) as record:
            train(
                replace(seeded(setting.opd, bench.seed), learning_rate=rate),
                student,
                chat,
                renderer=renderer,
                advantages=reverse_kl(teacher),
                teacher=teacher,
                measure=known_at_first(measure, start),
                record=record,
            )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a method and a learning rate came to, over all seeds."""

    method: str
    rate: float
    behaviour: Estimate
    change: Estimate
    """Of behaviour, against the start."""
    kl: Estimate
    """Nats per token from the start."""


def outcomes(results: Sequence[Result]) -> list[Outcome]:
    """By method and learning rate."""
    start = [last_measured(result.of(START), "behaviour") for result in results]
    found: list[Outcome] = []
    for method in METHODS:
        for rate in results[0].header["setting"]["learning_rates"]:
            ends = [result.of(run_name(method, rate)) for result in results]
            behaviour = [last_measured(rows, "behaviour") for rows in ends]
            found.append(
                Outcome(
                    method=method,
                    rate=rate,
                    behaviour=estimate(behaviour),
                    change=estimate([end - begin for end, begin in zip(behaviour, start, strict=True)]),
                    kl=estimate([last_measured(rows, "kl_to_start") for rows in ends]),
                )
            )
    return found


def tables(results: Sequence[Result]) -> str:
    """One row a method and learning rate."""
    start = estimate([last_measured(result.of(START), "behaviour") for result in results])
    lines = [
        "| method | learning rate | behaviour | change | KL to the start, nats per token |",
        "|---|---|---|---|---|",
        f"| start | | {start.text(percent)} | | |",
    ]
    for outcome in outcomes(results):
        cells = (
            outcome.method.upper(),
            f"{outcome.rate:g}",
            outcome.behaviour.text(percent),
            outcome.change.text(_signed),
            outcome.kl.text(lambda nats: f"{nats:.3f}"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bars(results: Sequence[Result]) -> list[Bar]:
    """SFT loses wherever it moves; OPD loses nothing."""
    found = outcomes(results)
    moved = [o for o in found if o.method == "sft" and o.kl.mean > MOVED]
    opd = [o for o in found if o.method == "opd"]
    loses = [_negation(reaches(o.change, 0.0)) for o in moved]
    keeps = [is_no_loss(o.change) for o in opd]
    return [
        Bar(
            claim="SFT on its own samples loses behaviour at every learning rate that moves the model",
            measured=_listed(moved) or f"no learning rate moved it by {MOVED} nats per token",
            holds=all_hold(loses) if moved else None,
        ),
        Bar(
            claim=f"OPD from oneself loses nothing, give or take {100 * MARGIN:.0f} points",
            measured=_listed(opd),
            holds=all_hold(keeps),
        ),
    ]


def _negation(verdict: bool | None) -> bool | None:
    return None if verdict is None else not verdict


def _listed(found: Sequence[Outcome]) -> str:
    return ", ".join(f"{o.change.text(_signed)} at {o.rate:g}" for o in found)


def _signed(change: float) -> str:
    return f"{100 * change:+.1f} points"


def figure(results: Sequence[Result]) -> Figure:
    """Behaviour and distance from the start over the learning rate."""
    drawing, (behaviour, kl) = panels(2)
    found = outcomes(results)
    for method in METHODS:
        mine = [o for o in found if o.method == method]
        rates = [o.rate for o in mine]
        for axis, estimates in ((behaviour, [o.behaviour for o in mine]), (kl, [o.kl for o in mine])):
            axis.plot(
                rates, [e.mean for e in estimates], color=COLOURS[method], marker="o", label=method.upper()
            )
            for rate, each in zip(rates, estimates, strict=True):
                axis.plot([rate] * len(each.values), each.values, ".", color=COLOURS[method], alpha=0.4)
    start = estimate([last_measured(result.of(START), "behaviour") for result in results])
    behaviour.axhline(start.mean, color=COLOURS["teacher"], linestyle="--", linewidth=1, label="start")
    as_percent(behaviour, "behaviour")
    kl.set_ylabel("KL to the start, nats per token")
    for axis in (behaviour, kl):
        axis.set_xscale("log")
        axis.set_xlabel("learning rate")
        axis.legend(frameon=False)
    return drawing


EXPERIMENT = Experiment(
    number="E6",
    name="self_distillation",
    title="SFT on its own samples spoils a model; OPD from itself does not",
    claim=(
        "The post fine-tunes Qwen3-32B on its own samples at temperature 1, where the expected KL is 0: "
        "IF-eval falls at any practical learning rate, since every finite batch is a little off the model's "
        "distribution. OPD with the model itself as a fixed teacher does not lose."
    ),
    sizes={
        "smoke": SelfDistillationSetting(
            model=ScratchConfig(hidden=32, layers=1, heads=2, mlp=64),
            rank=4,
            learning_rates=(1e-3,),
            chat=ChatSetting(tested=2, max_tokens=4),
            samples=SampleSetting(prompts=2, max_tokens=4),
            kl_prompts=2,
            sft=SupervisedConfig(steps=1, batch_size=2, evaluate_every=1, stop_when_collapsed=False),
            opd=TrainConfig(
                steps=1,
                prompts_per_step=2,
                group_size=1,
                max_tokens=4,
                evaluate_every=1,
                stop_when_collapsed=False,
            ),
        ),
        "small": SelfDistillationSetting(
            model=CLERK,
            rank=32,
            learning_rates=(1e-3, 3e-3, 5e-3),
            chat=ChatSetting(tested=1000),
            samples=SampleSetting(prompts=640),
            kl_prompts=128,
            sft=SupervisedConfig(
                steps=100,
                batch_size=64,
                decay_to=1.0,
                warmup_steps=5,
                evaluate_every=100,
                stop_when_collapsed=False,
            ),
            opd=TrainConfig(
                steps=100,
                prompts_per_step=64,
                group_size=1,
                max_tokens=24,
                decay_to=1.0,
                warmup_steps=5,
                evaluate_every=100,
                # A KL that begins at 0 grows by any factor; where it leads is the finding.
                stop_when_collapsed=False,
            ),
        ),
        "full": SelfDistillationSetting(
            model="Qwen/Qwen3-32B",
            rank=128,
            learning_rates=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
            chat=ChatSetting(
                chat_file="data/tulu-3.jsonl", ifeval_file="data/ifeval.jsonl", tested=541, max_tokens=4096
            ),
            samples=SampleSetting(prompts=12_800, max_tokens=4096),
            kl_prompts=256,
            sft=SupervisedConfig(
                steps=100, batch_size=128, decay_to=0.0, evaluate_every=50, stop_when_collapsed=False
            ),
            opd=TrainConfig(
                steps=100,
                prompts_per_step=128,
                group_size=1,
                max_tokens=4096,
                decay_to=0.0,
                evaluate_every=50,
                stop_when_collapsed=False,
            ),
        ),
    },
    models=lambda setting: [setting.model],
    run=run,
    tables=tables,
    bars=bars,
    figure=figure,
)
