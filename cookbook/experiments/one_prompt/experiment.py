"""E5. One prompt is enough to copy most of a teacher.

RL makes a teacher of a base model. Two students with the base's weights are distilled from it with as many
rollouts: one on new problems at every step, one on a single problem throughout. What the second knows
afterwards is asked on problems that it has never seen, where a memorised answer would be the same everywhere,
and wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING

from cookbook.advantages import group_relative, reverse_kl
from cookbook.evaluation import greedy_replies
from cookbook.experiments.experiment import Bar, Bench, Experiment, Result
from cookbook.experiments.figures import COLOURS, as_percent, curves, panels
from cookbook.experiments.nomenclator import Nomenclator
from cookbook.experiments.rl_teacher.experiment import EXPERIMENT as RL_TEACHER
from cookbook.experiments.statistics import estimate, estimate_known, percent, reaches
from cookbook.experiments.students import (
    ON_POLICY,
    BaseModel,
    Examination,
    base_models,
    evaluated,
    examples_to_imitate,
    fresh_student,
    probed_teacher,
    renderer_of,
    saved_sampler,
    seeded,
    task_named,
)
from cookbook.loop import TrainConfig, WatchedTeacher, train
from cookbook.objectives import Objective
from cookbook.rollouts import Grade, Problem, Task
from cookbook.scratch_model import ScratchConfig
from cookbook.supervised import SupervisedConfig, train_on_examples
from cookbook.table import SUPERVISED_COLUMNS
from tinkerlite import TrainingClient

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR = 0.9
"""Share of the teacher's gain over the base model that one prompt has to bring."""


@dataclass(frozen=True, kw_only=True)
class OnePromptSetting:
    """Everything that changes the result."""

    model: BaseModel
    """Of teacher and students."""
    task: str
    """What RL is rewarded for, and the one prompt is of."""
    examination: Examination
    """How accuracy is measured."""
    rank: int
    """Of all LoRA adapters; 0 trains all weights."""
    base: SupervisedConfig | None
    """How the base model is made ready by the task's answers; None: it is as it comes."""
    teacher: TrainConfig
    """RL from the base, which makes the teacher."""
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
    """The base, a teacher by RL from it, then two students from it."""
    [model] = bench.models
    task = task_named(setting.task)
    base = fresh_student(bench.service, model, setting.rank, bench.seed)
    renderer = renderer_of(base)
    measure = setting.examination.measure(task, renderer, bench.seed)
    # Base, teacher and students have streams of problems of their own.
    of_base, of_teacher, of_students = 2 * bench.seed, 2 * bench.seed + 1, bench.seed + ON_POLICY
    if setting.base is not None:
        examples = examples_to_imitate(task, renderer, of_base, longest=0)
        with bench.record("base", SUPERVISED_COLUMNS) as record:
            train_on_examples(setting.base, base, examples, measure=measure, record=record)
    state = base.save_state("base").result().path

    def from_base(
        run: str,
        config: TrainConfig,
        problems: Task,
        advantages: Objective,
        teacher: WatchedTeacher | None = None,
    ) -> TrainingClient:
        """A trainer with the base's weights, after its rollouts."""
        trainer = bench.service.create_training_client_from_state(state)
        with bench.record(run) as record:
            train(
                config,
                trainer,
                problems,
                renderer=renderer,
                advantages=advantages,
                teacher=teacher,
                record=record,
                measure=measure,
            )
        return trainer

    trainer = from_base("teacher", seeded(setting.teacher, of_teacher), task, group_relative)
    sampler = saved_sampler(bench.service, trainer, "teacher")
    teacher = probed_teacher(bench, sampler, base.get_tokenizer(), task, renderer)
    samplers = {"teacher": sampler}
    for name, config, problems in (
        ("one", setting.one, OneProblem(task=task)),
        ("many", setting.many, task),
    ):
        objective = reverse_kl(teacher, clip=setting.kl_clip)
        student = from_base(name, seeded(config, of_students), problems, objective, teacher)
        samplers[name] = student.save_weights_and_get_sampling_client()

    only = next(OneProblem(task=task).training_problems(of_students))
    prompt = only.messages[-1]["content"]
    held_out = task.held_out(setting.examination.problems)
    asked = [problem.messages[-1]["content"] for problem in held_out]
    # What the prompt has to say about other problems can be counted in a nomenclator alone.
    known = {"covered": task.shown(prompt, asked)} if isinstance(task, Nomenclator) else {}
    for name, each in samplers.items():
        answers = greedy_replies(each, held_out, renderer=renderer, max_tokens=setting.examination.max_tokens)
        replies = [answer.text for answer in answers]
        bench.note(
            f"answers of {name}",
            prompt=prompt,
            **known,
            distinct=len(set(replies)),
            distinct_right=len({problem.answer for problem in held_out}),
            the_only_answer=sum(task.grade(only, reply).correct for reply in replies),
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
        """Of the teacher's gain; None if RL brought it nothing."""
        gain = self.teacher - self.base
        return (getattr(self, student) - self.base) / gain if gain > 0 else None


def figures_of(result: Result) -> Seed:
    """Accuracies before and after. The base is what the teacher was at first."""
    last = {run: evaluated(result.of(run))[-1]["accuracy"] for run in ("teacher", "one", "many")}
    return Seed(base=evaluated(result.of("teacher"))[0]["accuracy"], **last)


def tables(results: Sequence[Result]) -> str:
    """One row a seed."""
    rows = [_row(result) for result in results]
    columns = list(rows[0])
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(row.values())} |" for row in rows]
    return "\n".join(lines)


def _row(result: Result) -> dict[str, str]:
    """Cells by their columns. Letters and pairs are there if the task has any."""
    seed = figures_of(result)
    share = seed.share("one")
    [answers], [of_teacher] = result.of("answers of one"), result.of("answers of teacher")
    covered = answers.get("covered")
    return {
        "seed": str(result.seed),
        "the prompt": f"`{answers['prompt']}`",
        **({f"{name} it shows": percent(value) for name, value in covered.items()} if covered else {}),
        "base": percent(seed.base),
        "teacher": percent(seed.teacher),
        "one prompt": percent(seed.one),
        "share of the gain": "-" if share is None else percent(share),
        "many prompts": percent(seed.many),
        "distinct answers: one / teacher / right": (
            f"{answers['distinct']} / {of_teacher['distinct']} / {answers['distinct_right']}"
        ),
        "gave the prompt's answer": f"{answers['the_only_answer']} of {answers['asked']}",
    }


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
    prompts_per_step=2,
    group_size=2,
    max_tokens=4,
    evaluate_every=1,
    decay_to=1.0,
    stop_when_collapsed=False,
)
SMALL = TrainConfig(
    steps=20,
    prompts_per_step=256,
    group_size=1,
    max_tokens=36,
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
            task="nomenclator-even",
            examination=Examination(problems=3, max_tokens=4),
            rank=4,
            base=SupervisedConfig(steps=1, batch_size=4, evaluate_every=1, stop_when_collapsed=False),
            teacher=SMOKE,
            one=replace(SMOKE, prompts_per_step=1, group_size=4),
            many=SMOKE,
            kl_clip=5.0,
        ),
        "small": OnePromptSetting(
            model=ScratchConfig(hidden=96, layers=2, heads=4, mlp=256),
            task="nomenclator-even",
            examination=Examination(problems=400, max_tokens=36),
            rank=0,
            base=SupervisedConfig(
                steps=150, batch_size=64, learning_rate=3e-3, evaluate_every=50, stop_when_collapsed=False
            ),
            teacher=replace(SMALL, prompts_per_step=64, group_size=4, evaluate_every=5, learning_rate=1e-3),
            one=replace(SMALL, prompts_per_step=1, group_size=256),
            many=SMALL,
            kl_clip=5.0,
        ),
        "full": OnePromptSetting(
            model="Qwen/Qwen3-8B-Base",
            task="deepmath",
            examination=Examination(problems=30, samples=32, max_tokens=32_768),
            rank=128,
            base=None,
            # The teacher of E4.
            teacher=RL_TEACHER.sizes["full"].rl,
            one=replace(FULL, prompts_per_step=1, group_size=256),
            many=FULL,
            kl_clip=None,
        ),
    },
    models=lambda setting, folder: base_models([setting.model], folder),
    run=run,
    tables=tables,
    bars=bars,
    figure=figure,
)
