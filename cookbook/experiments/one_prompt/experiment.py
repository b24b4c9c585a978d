"""E5. One prompt is enough to copy most of a teacher.

A teacher is made by supervised fine-tuning. Two students are distilled from it with as many rollouts: one on
new problems at every step, one on a single problem throughout. What the second knows afterwards is asked on
problems that it has never seen, where a memorised answer would be the same everywhere, and wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING

from cookbook.advantages import reverse_kl
from cookbook.evaluation import greedy_replies
from cookbook.experiments.base_models import BaseModel
from cookbook.experiments.experiment import Bar, Bench, Experiment, Result
from cookbook.experiments.figures import COLOURS, as_percent, curves, panels
from cookbook.experiments.statistics import estimate, estimate_known, percent, reaches
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
    task_named,
)
from cookbook.loop import TrainConfig, train
from cookbook.rollouts import Grade, Problem, Task
from cookbook.scratch_model import ScratchConfig
from cookbook.supervised import SupervisedConfig, train_on_examples
from cookbook.table import SUPERVISED_COLUMNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR = 0.9
"""Share of the teacher's gain over the base model that one prompt has to bring."""


@dataclass(frozen=True, kw_only=True)
class OnePromptSetting:
    """Everything that changes the result."""

    model: BaseModel
    """Base model of teacher and students."""
    task: str
    """What the teacher is taught, and the one prompt is of."""
    longest: int
    """Tokens of the longest conversation of OpenThoughts for the teacher; 0 teaches the task's answers."""
    examination: Examination
    """How accuracy is measured."""
    rank: int
    """Of all LoRA adapters."""
    teacher: SupervisedConfig
    """How the teacher is made."""
    one: TrainConfig
    """Distillation on one prompt: prompts_per_step is 1."""
    many: TrainConfig
    """Distillation on new prompts at every step, with as many rollouts."""
    kl_clip: float | None
    """Largest per-token KL that counts, in nats."""


@dataclass(frozen=True, kw_only=True)
class OneProblem:
    """A task that trains on a single one of its problems, and is examined on all others."""

    task: Task
    """Where the problem and the held-out ones come from."""

    @property
    def name(self) -> str:
        """Of the task, with what was done to it."""
        return f"one-{self.task.name}"

    def training_problems(self, seed: int) -> Iterator[Problem]:
        """The first problem of this seed, for ever."""
        return repeat(next(self.task.training_problems(seed)))

    def held_out(self, count: int) -> list[Problem]:
        """Those of the task."""
        return self.task.held_out(count)

    def grade(self, problem: Problem, reply: str) -> Grade:
        """As the task does."""
        return self.task.grade(problem, reply)


def run(bench: Bench, setting: OnePromptSetting) -> None:
    """A teacher, then two students."""
    [model] = bench.models
    task = task_named(setting.task)
    trainer = fresh_student(bench.service, model, setting.rank, bench.seed)
    renderer = renderer_of(trainer)
    measure = setting.examination.measure(task, renderer, bench.seed)
    examples = examples_to_imitate(task, renderer, bench.seed, longest=setting.longest)
    with bench.record("teacher", SUPERVISED_COLUMNS) as record:
        train_on_examples(setting.teacher, trainer, examples, measure=measure, record=record)
    sampler = saved_sampler(bench.service, trainer, "teacher")
    teacher = probed_teacher(bench, sampler, trainer.get_tokenizer(), task, renderer)
    # Neither student meets what the teacher was taught.
    seed = bench.seed + ON_POLICY
    only = next(OneProblem(task=task).training_problems(seed))
    held_out = task.held_out(setting.examination.problems)
    samplers = {"teacher": sampler}
    for name, config, problems in (
        ("one", setting.one, OneProblem(task=task)),
        ("many", setting.many, task),
    ):
        student = fresh_student(bench.service, model, setting.rank, bench.seed)
        with bench.record(name) as record:
            train(
                seeded(config, seed),
                student,
                problems,
                renderer=renderer,
                advantages=reverse_kl(teacher, clip=setting.kl_clip),
                teacher=teacher,
                record=record,
                measure=measure,
            )
        samplers[name] = student.save_weights_and_get_sampling_client()
    for name, each in samplers.items():
        asked = greedy_replies(each, held_out, renderer=renderer, max_tokens=setting.examination.max_tokens)
        replies = [reply.text for reply in asked]
        bench.note(
            f"answers of {name}",
            prompt=only.messages[-1]["content"],
            distinct=len(set(replies)),
            distinct_right=len({problem.answer for problem in held_out}),
            the_only_answer=sum(reply.strip() == only.answer for reply in replies),
            asked=len(replies),
        )


@dataclass(frozen=True, kw_only=True)
class Seed:
    """What one seed says."""

    base: float
    teacher: float
    one: float
    many: float

    def share(self, student: str) -> float | None:
        """Of the teacher's gain; None if the teacher gained nothing."""
        gain = self.teacher - self.base
        return (getattr(self, student) - self.base) / gain if gain > 0 else None


def figures_of(result: Result) -> Seed:
    """Accuracies before and after."""
    last = {run: evaluated(result.of(run))[-1]["accuracy"] for run in ("teacher", "one", "many")}
    return Seed(base=evaluated(result.of("teacher"))[0]["accuracy"], **last)


def tables(results: Sequence[Result]) -> str:
    """One row a seed."""
    columns = (
        "seed",
        "the prompt",
        "base",
        "teacher",
        "one prompt",
        "share of the gain",
        "many prompts",
        "distinct answers: one / teacher / right",
        "gave the prompt's answer",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for result in results:
        seed, [answers] = figures_of(result), result.of("answers of one")
        [of_teacher] = result.of("answers of teacher")
        share = seed.share("one")
        cells = (
            str(result.seed),
            f"`{answers['prompt']}`",
            percent(seed.base),
            percent(seed.teacher),
            percent(seed.one),
            "-" if share is None else percent(share),
            percent(seed.many),
            f"{answers['distinct']} / {of_teacher['distinct']} / {answers['distinct_right']}",
            f"{answers['the_only_answer']} of {answers['asked']}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bars(results: Sequence[Result]) -> list[Bar]:
    """The share of the gain, and whether answers are still different."""
    shares = [figures_of(result).share("one") for result in results]
    mean = estimate_known(shares)
    variety = [
        result.of("answers of one")[0]["distinct"] / result.of("answers of teacher")[0]["distinct"]
        for result in results
    ]
    return [
        Bar(
            claim=f"One prompt brings at least {BAR:.0%} of the teacher's gain",
            measured="a teacher gained nothing" if mean is None else mean.text(percent),
            holds=None if mean is None else reaches(mean, BAR),
        ),
        Bar(
            claim="Answers to other prompts stay different (at least nine tenths as many as the teacher's)",
            measured=f"{estimate(variety).text(percent)} as many",
            holds=reaches(estimate(variety), 0.9),
        ),
    ]


def figure(results: Sequence[Result]) -> Figure:
    """Accuracy on other problems, and the KL on the student's own prompts."""
    drawing, (accuracy, kl) = panels(2)
    for name, label, colour in (
        ("one", "one prompt", COLOURS["rl"]),
        ("many", "many prompts", COLOURS["opd"]),
    ):
        rows = [result.of(name) for result in results]
        curves(
            accuracy,
            [[(row["step"], row["accuracy"]) for row in evaluated(seed)] for seed in rows],
            label=label,
            colour=colour,
        )
        curves(
            kl,
            [[(row["step"], row["reverse_kl"]) for row in seed if "reverse_kl" in row] for seed in rows],
            label=label,
            colour=colour,
        )
    for result in results:
        accuracy.axhline(figures_of(result).teacher, color=COLOURS["teacher"], linewidth=0.8, linestyle=":")
    as_percent(accuracy, "accuracy, held out (dotted: teachers)")
    accuracy.set_xlabel("updates")
    accuracy.legend(frameon=False)
    kl.set(xlabel="updates", ylabel="reverse KL on its own prompts, nats per token")
    return drawing


SMOKE = TrainConfig(
    steps=1,
    prompts_per_step=1,
    group_size=4,
    max_tokens=4,
    evaluate_every=1,
    decay_to=1.0,
    stop_when_collapsed=False,
)
SMALL = TrainConfig(
    steps=20,
    prompts_per_step=1,
    group_size=128,
    max_tokens=8,
    evaluate_every=4,
    learning_rate=5e-4,
    stop_when_collapsed=False,
)

FULL = TrainConfig(
    steps=20,
    prompts_per_step=64,
    group_size=4,
    max_tokens=4096,
    evaluate_every=5,
    learning_rate=1e-4,
    decay_to=1.0,
)

EXPERIMENT = Experiment(
    number="E5",
    name="one_prompt",
    title="One prompt is enough to copy most of a teacher",
    claim=(
        "The post distils its RL teacher with a single random prompt (20 steps of 256 rollouts, 5,120 "
        "sequences) and about matches the teacher, without collapsing into one memorised answer."
    ),
    sizes={
        "smoke": OnePromptSetting(
            model=ScratchConfig(hidden=32, layers=1, heads=2, mlp=64),
            task="number-words",
            longest=0,
            examination=Examination(problems=3, samples=0, max_tokens=4),
            rank=4,
            teacher=SupervisedConfig(steps=1, batch_size=4, evaluate_every=1),
            one=SMOKE,
            many=replace(SMOKE, prompts_per_step=2, group_size=2),
            kl_clip=5.0,
        ),
        "small": OnePromptSetting(
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            task="number-words",
            longest=0,
            examination=Examination(problems=200, samples=0, max_tokens=8),
            rank=32,
            teacher=SupervisedConfig(steps=5, batch_size=32, evaluate_every=5),
            one=SMALL,
            many=replace(SMALL, prompts_per_step=32, group_size=4),
            kl_clip=5.0,
        ),
        "full": OnePromptSetting(
            model="Qwen/Qwen3-8B-Base",
            task="deepmath",
            longest=16_384,
            examination=Examination(problems=30, samples=32, max_tokens=32_768),
            rank=128,
            teacher=SupervisedConfig(steps=3000, batch_size=128, learning_rate=1e-3, evaluate_every=500),
            one=replace(FULL, prompts_per_step=1, group_size=256),
            many=FULL,
            kl_clip=None,
        ),
    },
    models=lambda setting: [setting.model],
    run=run,
    tables=tables,
    bars=bars,
    figure=figure,
)
