"""Objectives beyond advantages against the real server, in process, on a tiny random model."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cookbook.advantages import group_relative, reverse_kl
from cookbook.contexts import told_the_answer
from cookbook.controls import fixed_negative
from cookbook.entropy import entropy_aware, where_student_is_unsure
from cookbook.loop import TrainConfig, completion_limit, train
from cookbook.metrics import Row
from cookbook.mixing import MixedTask, RoutedTeachers, total
from cookbook.objectives import Objective
from cookbook.renderers import Renderer
from cookbook.rollouts import Group, Problem, Task, rollout
from cookbook.supervised import SupervisedConfig, train_supervised
from cookbook.tasks import TASKS, with_format_credit
from cookbook.teachers import Teacher
from cookbook.top_k import bucket_tail, control_variate, top_k_reverse_kl
from tinkerlite import SamplingClient, ServiceClient

VOCABULARY = 512
TASK = with_format_credit(TASKS["sums"])
SMALL = TrainConfig(
    steps=1,
    prompts_per_step=3,
    group_size=2,
    max_tokens=5,
    held_out=2,
    learning_rate=1e-2,
    alternatives=8,
)


@pytest.fixture(scope="module")
def service(tiny_folder: Path) -> Iterator[ServiceClient]:
    with ServiceClient(base_url=f"local://{tiny_folder}") as client:
        yield client


@pytest.fixture(scope="module")
def base(service: ServiceClient, tiny_folder: Path) -> SamplingClient:
    return service.create_sampling_client(base_model=str(tiny_folder))


@pytest.fixture(scope="module")
def taught(service: ServiceClient, tiny_folder: Path, renderer: Renderer) -> SamplingClient:
    """Weights that differ from the base model's, by one coarse supervised step."""
    trainer = service.create_lora_training_client(str(tiny_folder), rank=4, seed=7)
    config = SupervisedConfig(steps=1, batch_size=4, learning_rate=3e-2, held_out=4, max_tokens=5)
    train_supervised(config, trainer, TASK, renderer=renderer, record=lambda row: None)
    return trainer.save_weights_and_get_sampling_client()


@pytest.fixture
def teacher(taught: SamplingClient, tokenizer: Any) -> Teacher:
    return Teacher(taught, tokenizer)


@pytest.fixture
def groups(base: SamplingClient, renderer: Renderer) -> list[Group]:
    return sampled(base, renderer, alternatives=8)


def sampled(
    sampler: SamplingClient,
    renderer: Renderer,
    on_group: Callable[[Group], None] | None = None,
    alternatives: int = 0,
) -> list[Group]:
    problems = list(islice(TASK.training_problems(0), 3))
    return rollout(
        sampler,
        problems,
        renderer=renderer,
        task=TASK,
        group_size=2,
        max_tokens=5,
        seed=1,
        alternatives=alternatives,
        on_group=on_group,
    )


@pytest.fixture
def run(service: ServiceClient, tiny_folder: Path, renderer: Renderer) -> Callable[..., list[Row]]:
    def run_loop(config: TrainConfig, objective: Objective, task: Task = TASK, **options: Any) -> list[Row]:
        student = service.create_lora_training_client(str(tiny_folder), rank=4, seed=0)
        return train(
            config, student, task, renderer=renderer, advantages=objective, record=lambda row: None, **options
        )

    return run_loop


def trajectories_with(groups: list[Group], values: list[list[Any]]) -> Iterator[tuple[Any, Any]]:
    for group, of_group in zip(groups, values, strict=True):
        yield from zip(group.trajectories, of_group, strict=True)


# ---- alternatives ----


def test_rollouts_record_the_students_likeliest_tokens_in_order(groups: list[Group]):
    for trajectory in (t for group in groups for t in group.trajectories):
        recorded = trajectory.alternatives
        assert recorded.token_ids.shape == (len(trajectory.completion_tokens), 8)
        assert (np.diff(recorded.logprobs, axis=1) <= 0).all()
        at, among = np.nonzero(recorded.token_ids == np.asarray(trajectory.completion_tokens)[:, None])
        assert recorded.logprobs[at, among] == pytest.approx(trajectory.logprobs[at], abs=1e-5)


def test_recording_them_changes_nothing_that_is_sampled(
    groups: list[Group], base: SamplingClient, renderer: Renderer
):
    without = sampled(base, renderer)
    assert [[t.completion_tokens for t in g.trajectories] for g in without] == [
        [t.completion_tokens for t in g.trajectories] for g in groups
    ]
    assert without[0].trajectories[0].alternatives is None


def test_a_teachers_scores_of_alternatives_are_those_of_its_whole_distribution(
    groups: list[Group], teacher: Teacher
):
    scores, own = teacher.score_alternatives(groups), teacher.top_k(groups, VOCABULARY)
    sampled_scores = teacher.score(groups)
    for (trajectory, given), (_, whole), (_, sampled_one) in zip(
        trajectories_with(groups, scores),
        trajectories_with(groups, own),
        trajectories_with(groups, sampled_scores),
        strict=True,
    ):
        by_id = np.take_along_axis(whole.logprobs, np.argsort(whole.token_ids, axis=1), axis=1)
        assert given == pytest.approx(
            np.take_along_axis(by_id, trajectory.alternatives.token_ids.astype(int), axis=1), abs=1e-5
        )
        assert sampled_one == pytest.approx(
            by_id[np.arange(len(by_id)), trajectory.completion_tokens], abs=1e-5
        )


def test_without_alternatives_objectives_that_need_them_say_what_to_set(
    base: SamplingClient, renderer: Renderer, teacher: Teacher
):
    bare = sampled(base, renderer)
    for objective in (
        top_k_reverse_kl(teacher),
        control_variate(teacher),
        where_student_is_unsure(reverse_kl(teacher)),
    ):
        with pytest.raises(ValueError, match=r"set alternatives \(--alternatives\)"):
            objective(bare)


# ---- training ----


@pytest.mark.parametrize(
    "make",
    [
        top_k_reverse_kl,
        lambda teacher: top_k_reverse_kl(teacher, tail=bucket_tail),
        control_variate,
        lambda teacher: entropy_aware(teacher, k=8, unsure_above=0.0),
        lambda teacher: where_student_is_unsure(top_k_reverse_kl(teacher)),
        lambda teacher: total(group_relative, top_k_reverse_kl(teacher, kl_coef=0.1)),
        fixed_negative,
    ],
    ids=["top-k", "bucket", "control variate", "entropy", "unsure", "mixed", "control"],
)
def test_every_objective_trains_and_its_logprobs_are_those_of_the_sampled_tokens(
    run: Callable[..., list[Row]], teacher: Teacher, make: Callable[[Teacher], Objective]
):
    first, last = run(SMALL, make(teacher), teacher=teacher)
    assert first["logprob_difference_max"] < 1e-4
    assert first["ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert first["advantage_rms"] > 0
    assert first["optimizer_grad_norm"] > 0
    assert last["reverse_kl"] != first["reverse_kl"]


def test_top_k_distillation_brings_the_student_nearer_to_the_teacher(
    run: Callable[..., list[Row]], teacher: Teacher
):
    config = replace(SMALL, steps=12, prompts_per_step=4, group_size=8, decay_to=1.0, evaluate_every=99)
    kl = [row["reverse_kl"] for row in run(config, top_k_reverse_kl(teacher), teacher=teacher)]
    assert sum(kl[-4:]) < 0.75 * sum(kl[:2]) * 2


# ---- short and growing rollouts ----


def test_the_limit_of_rollouts_leads_from_the_first_steps_to_the_last_ones():
    limits = [
        completion_limit(replace(SMALL, steps=4, rollout_tokens=2, rollout_tokens_last=10), s)
        for s in range(5)
    ]
    assert limits == [2, 4, 6, 8, 10]
    assert completion_limit(replace(SMALL, rollout_tokens=3), 1) == 3
    assert completion_limit(SMALL, 1) == SMALL.max_tokens


def test_short_rollouts_train_on_beginnings_and_being_cut_is_no_fault_of_theirs(
    run: Callable[..., list[Row]], teacher: Teacher
):
    strict = replace(SMALL, rollout_tokens=1, max_truncated_fraction=0.0)
    rows = run(strict, reverse_kl(teacher), teacher=teacher)
    assert [row["completion_length"] for row in rows] == [1.0, 1.0]
    assert rows[0]["truncated_fraction"] > 0


# ---- scoring while others are sampled ----


def test_groups_are_handed_on_as_they_finish_and_come_back_in_the_problems_order(
    base: SamplingClient, renderer: Renderer
):
    finished: list[Group] = []
    groups = sampled(base, renderer, on_group=finished.append)
    assert set(finished) == set(groups)
    assert [group.problem for group in groups] == list(islice(TASK.training_problems(0), 3))


def test_scores_that_were_asked_for_during_sampling_are_those_of_asking_afterwards(
    base: SamplingClient, renderer: Renderer, taught: SamplingClient, tokenizer: Any
):
    early = Teacher(taught, tokenizer)
    groups = sampled(base, renderer, on_group=early.start, alternatives=8)
    later = Teacher(taught, tokenizer)
    for ask in (Teacher.score, Teacher.score_alternatives):
        for (_, one), (_, other) in zip(
            trajectories_with(groups, ask(early, groups)),
            trajectories_with(groups, ask(later, groups)),
            strict=True,
        ):
            assert one == pytest.approx(other, abs=1e-5)


# ---- contexts and routes ----


def test_a_teacher_that_knows_more_grades_the_same_tokens_after_another_prompt(
    groups: list[Group], teacher: Teacher, renderer: Renderer
):
    knowing = teacher.reading(told_the_answer(), renderer)
    problem = groups[0].problem
    prompt = renderer.text(knowing.prompt(problem, groups[0].trajectories[0].prompt_tokens))
    assert f"(The answer is {problem.answer}.)<|im_end|>" in prompt
    for (trajectory, scores), (_, ignorant) in zip(
        trajectories_with(groups, knowing.score(groups)),
        trajectories_with(groups, teacher.score(groups)),
        strict=True,
    ):
        assert len(scores) == len(trajectory.completion_tokens)
        assert np.abs(scores - ignorant).max() > 1e-3


def test_a_context_needs_a_renderer(base: SamplingClient, tokenizer: Any):
    with pytest.raises(ValueError, match="needs a renderer"):
        Teacher(base, tokenizer, context=told_the_answer())


def test_each_problem_goes_to_its_own_teacher(
    groups: list[Group], base: SamplingClient, teacher: Teacher, tokenizer: Any
):
    own = Teacher(base, tokenizer)

    def route(problem: Problem) -> str:
        return "taught" if problem is groups[1].problem else "own"

    routed = RoutedTeachers({"own": own, "taught": teacher}, route)
    expected = [own.score(groups)[0], teacher.score(groups)[1], own.score(groups)[2]]
    for (_, scores), (_, alone) in zip(
        trajectories_with(groups, routed.score(groups)), trajectories_with(groups, expected), strict=True
    ):
        assert scores == pytest.approx(alone, abs=1e-5)
    with pytest.raises(KeyError, match="no teacher for 'own'; there are teachers for \\['taught'\\]"):
        RoutedTeachers({"taught": teacher}, route).score(groups)


def test_a_student_learns_two_tasks_from_two_teachers(
    run: Callable[..., list[Row]], base: SamplingClient, teacher: Teacher, tokenizer: Any
):
    mixed = MixedTask(tasks={"sums": TASK, "larger": with_format_credit(TASKS["larger"])})
    teachers = RoutedTeachers({"sums": teacher, "larger": Teacher(base, tokenizer)})
    rows = run(SMALL, top_k_reverse_kl(teachers), mixed, teacher=teachers)
    assert rows[0]["reverse_kl"] != rows[-1]["reverse_kl"]
