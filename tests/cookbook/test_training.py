"""The loops against the real server, in process, on a tiny random model."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from cookbook.advantages import AdvantageFn, group_relative, kl_per_token, reverse_kl
from cookbook.datums import supervised_datum
from cookbook.diagnostics import kl_figures
from cookbook.evaluation import Evaluation, evaluate
from cookbook.guards import RunStopped
from cookbook.loop import TrainConfig, adam_params, train
from cookbook.metrics import Row
from cookbook.renderers import Renderer, chat_template
from cookbook.rollouts import Group, Problem, rollout
from cookbook.supervised import SupervisedConfig, train_on_examples, train_supervised, with_answer
from cookbook.tasks import TASKS, GeneratedTask, with_format_credit
from cookbook.teachers import Teacher, VocabularyMismatch
from tests.tiny import make_tiny_model
from tinkerlite import SamplingClient, ServiceClient

TASK = with_format_credit(TASKS["sums"])
SMALL = TrainConfig(
    steps=2, prompts_per_step=3, group_size=2, max_tokens=5, evaluate_every=2, held_out=4, learning_rate=1e-2
)


@pytest.fixture(scope="module")
def service(tiny_folder: Path) -> Iterator[ServiceClient]:
    with ServiceClient(base_url=f"local://{tiny_folder}") as client:
        yield client


@pytest.fixture(scope="module")
def base(service: ServiceClient, tiny_folder: Path) -> SamplingClient:
    return service.create_sampling_client(base_model=str(tiny_folder))


@pytest.fixture(scope="module")
def teacher(service: ServiceClient, tiny_folder: Path, tokenizer: Any, renderer: Renderer) -> Teacher:
    """Weights that differ from the base model's, by one coarse supervised step."""
    trainer = service.create_lora_training_client(str(tiny_folder), rank=4, seed=7)
    config = SupervisedConfig(steps=1, batch_size=4, learning_rate=3e-2, held_out=4, max_tokens=5)
    train_supervised(config, trainer, TASK, renderer=renderer, record=lambda row: None)
    return Teacher(trainer.save_weights_and_get_sampling_client(), tokenizer)


def sample_groups(sampler: SamplingClient, renderer: Renderer, **options: Any) -> list[Group]:
    problems = list(islice(TASK.training_problems(0), 3))
    settings: dict[str, Any] = {"group_size": 2, "max_tokens": 5, "seed": 1} | options
    return rollout(sampler, problems, renderer=renderer, task=TASK, **settings)


def flat(nested: list[list[np.ndarray]]) -> np.ndarray:
    return np.concatenate([array for inner in nested for array in inner])


# ---- rollouts ----


def test_rollouts_come_in_the_order_of_their_problems_with_one_logprob_a_token(
    base: SamplingClient, renderer: Renderer
):
    problems = list(islice(TASK.training_problems(0), 3))
    groups = sample_groups(base, renderer, group_size=4)
    assert [group.problem for group in groups] == problems
    for group in groups:
        assert len(group.trajectories) == 4
        for t in group.trajectories:
            assert t.prompt_tokens == renderer.generation_prompt(group.problem.messages)
            assert 1 <= len(t.completion_tokens) <= 5
            assert len(t.logprobs) == len(t.completion_tokens)
            assert t.reply == renderer.parse(t.completion_tokens).text


def test_a_completion_is_truncated_exactly_when_it_lacks_the_stop_token(
    base: SamplingClient, renderer: Renderer
):
    groups = sample_groups(base, renderer, group_size=16, max_tokens=20)
    trajectories = [t for group in groups for t in group.trajectories]
    for t in trajectories:
        assert t.truncated == (t.completion_tokens[-1] not in renderer.stop_tokens)
    assert any(t.truncated for t in trajectories)


def test_a_seed_repeats_rollouts_and_samples_of_a_group_differ(base: SamplingClient, renderer: Renderer):
    def tokens(seed: int) -> list[list[int]]:
        groups = sample_groups(base, renderer, seed=seed)
        return [t.completion_tokens for group in groups for t in group.trajectories]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
    assert len({tuple(t) for t in tokens(1)}) > 1


# ---- teachers ----


def test_a_student_that_is_its_own_teacher_has_no_kl(
    base: SamplingClient, renderer: Renderer, tokenizer: Any
):
    groups = sample_groups(base, renderer)
    advantages = flat(reverse_kl(Teacher(base, tokenizer))(groups))
    assert np.abs(advantages).max() < 1e-4


def test_that_holds_for_one_token_completions_and_other_temperatures(
    base: SamplingClient, renderer: Renderer, tokenizer: Any
):
    own = Teacher(base, tokenizer)
    for options in ({"max_tokens": 1}, {"temperature": 0.6}):
        groups = sample_groups(base, renderer, **options)
        assert np.abs(flat(kl_per_token(groups, own.score(groups)))).max() < 1e-4


def test_another_teacher_has_an_opinion_on_one_token_completions_too(
    base: SamplingClient, renderer: Renderer, teacher: Teacher
):
    groups = sample_groups(base, renderer, max_tokens=1)
    assert np.abs(flat(kl_per_token(groups, teacher.score(groups)))).min() > 1e-4


def test_the_scores_of_a_batch_are_those_of_its_completions_one_by_one(
    base: SamplingClient, renderer: Renderer, tokenizer: Any
):
    groups = sample_groups(base, renderer)
    together = Teacher(base, tokenizer).score(groups)
    for group, scores in zip(groups, together, strict=True):
        for trajectory, score in zip(group.trajectories, scores, strict=True):
            alone = Group(problem=group.problem, trajectories=(trajectory,))
            assert Teacher(base, tokenizer).score([alone])[0][0] == pytest.approx(score, abs=1e-5)


def test_a_batch_is_scored_once_however_often_it_is_asked_for(
    base: SamplingClient, renderer: Renderer, tokenizer: Any
):
    own = Teacher(base, tokenizer)
    groups = sample_groups(base, renderer)
    first = own.score(groups)[0][0]
    assert own.score(list(groups))[0][0] is first
    assert own.score(groups[:1])[0][0] is first
    assert Teacher(base, tokenizer).score(groups)[0][0] is not first


def test_a_teacher_may_read_another_layout_of_the_same_completion(
    base: SamplingClient, renderer: Renderer, tokenizer: Any
):
    verbose = copy.deepcopy(tokenizer)
    verbose.chat_template = "<|im_start|>system\nBe brief.<|im_end|>\n" + tokenizer.chat_template
    other = Teacher(base, tokenizer, chat_template(verbose))
    groups = sample_groups(base, renderer)
    prompt = other.prompt(groups[0].problem, groups[0].trajectories[0].prompt_tokens)
    assert renderer.text(prompt).startswith("<|im_start|>system\nBe brief.")
    scores = other.score(groups)
    assert [len(s) for s in scores[0]] == [len(t.completion_tokens) for t in groups[0].trajectories]
    assert not np.allclose(flat(scores), flat(Teacher(base, tokenizer).score(groups)), atol=1e-3)


def test_a_teacher_of_another_vocabulary_is_refused_by_token(
    service: ServiceClient, base: SamplingClient, tmp_path: Path
):
    folder = make_tiny_model(
        tmp_path / "other", text="abcdefgh " * 3 + "xyzxyz " * 50 + Path(__file__).read_text()
    )
    with pytest.raises(
        VocabularyMismatch, match=r"token '.*' is id .* for the student and .* for the teacher"
    ):
        Teacher(base, AutoTokenizer.from_pretrained(folder))


# ---- loops ----


def test_the_learning_rate_falls_in_a_straight_line_to_a_share_of_itself():
    falling = TrainConfig(steps=4, learning_rate=0.01, decay_to=0.2)
    assert rates(falling) == pytest.approx([0.01, 0.008, 0.006, 0.004])
    assert rates(replace(falling, decay_to=1.0)) == [0.01] * 4


def test_over_the_first_steps_it_rises_to_that_line():
    rising = TrainConfig(steps=5, learning_rate=0.01, decay_to=1.0, warmup_steps=3)
    assert rates(rising) == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])


def rates(config: TrainConfig) -> list[float]:
    return [adam_params(config, step).learning_rate for step in range(config.steps)]


@pytest.mark.parametrize("name", ["evaluate_every", "kl_every", "held_out", "group_size"])
def test_a_count_of_none_is_refused_by_name(name: str):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        replace(TrainConfig(), **{name: 0})


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["learning_rate", "grad_clip_norm", "warmup_steps", "steps", "seed"])
def test_a_rate_or_a_seed_that_cannot_be_is_refused_before_anything_is_opened(name: str, value: float):
    for config in (TrainConfig(), SupervisedConfig()):
        with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least 0"):
            replace(config, **{name: value})


@pytest.fixture
def run(service: ServiceClient, tiny_folder: Path, renderer: Renderer) -> Callable[..., list[Row]]:
    """Train a fresh student; rows."""

    def run_loop(config: TrainConfig, advantages: AdvantageFn, **options: Any) -> list[Row]:
        student = service.create_lora_training_client(str(tiny_folder), rank=4, seed=0)
        settings: dict[str, Any] = {"renderer": renderer, "record": lambda row: None} | options
        return train(config, student, TASK, advantages=advantages, **settings)

    return run_loop


@pytest.mark.parametrize("method", ["rl", "opd"])
def test_two_steps_of_training_change_the_student_and_record_what_happened(
    run: Callable[..., list[Row]], teacher: Teacher, method: str
):
    recorded: list[Row] = []
    advantages = group_relative if method == "rl" else reverse_kl(teacher)
    rows = run(SMALL, advantages, teacher=teacher, record=recorded.append)
    assert rows == recorded
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert [row.get("accuracy") is None for row in rows] == [False, True, False]
    for row in rows:
        assert np.isfinite(row["reverse_kl"])
        assert row["completion_tokens"] >= 6
    for row in rows[:-1]:
        assert row["logprob_difference_max"] < 1e-4
        assert row["ratio_mean"] == pytest.approx(1.0, abs=1e-4)
        assert (row["staleness_mean"], row["staleness_max"]) == (0.0, 0)
        assert row["end_of_text_rate"] + row["truncated_fraction"] == pytest.approx(1.0)
        assert {"sampling", "advantages", "training"} == set(row["seconds"])
    assert rows[0]["reverse_kl"] != rows[-1]["reverse_kl"]


def test_distillation_brings_the_student_nearer_to_the_teacher(
    run: Callable[..., list[Row]], teacher: Teacher
):
    config = replace(
        SMALL, steps=24, prompts_per_step=4, group_size=8, decay_to=1.0, evaluate_every=99, held_out=1
    )
    rows = run(config, reverse_kl(teacher), teacher=teacher)
    kl = [row["reverse_kl"] for row in rows]
    # Each is measured on 32 completions, so single ones wander.
    assert sum(kl[-8:]) / 8 < 0.75 * sum(kl[:4]) / 4


def test_watching_the_kl_does_not_change_what_trains(run: Callable[..., list[Row]], teacher: Teacher):
    watched = run(SMALL, group_relative, teacher=teacher)
    alone = run(SMALL, group_relative)
    assert all("reverse_kl" not in row for row in alone)
    for key in ("reward", "entropy", "completion_tokens"):
        assert [row[key] for row in watched] == pytest.approx([row[key] for row in alone], abs=1e-5)


def test_the_kl_is_measured_as_often_as_asked_and_at_the_end(run: Callable[..., list[Row]], teacher: Teacher):
    rows = run(replace(SMALL, steps=3, kl_every=2), group_relative, teacher=teacher)
    assert ["reverse_kl" in row for row in rows] == [True, False, True, True]


def test_a_step_zero_that_is_known_is_not_evaluated_again(run: Callable[..., list[Row]]):
    rows = run(SMALL, group_relative, start=Evaluation((True, False)))
    assert (rows[0]["accuracy"], rows[-1]["accuracy"]) == (0.5, 0.0)


def test_a_run_that_goes_on_evaluates_its_own_weights(run: Callable[..., list[Row]]):
    known = Evaluation((True, False))
    rows = run(SMALL, group_relative, start=known)
    resumed = run(SMALL, group_relative, start=known, earlier=rows[:2])
    assert resumed[-1]["accuracy"] != known.accuracy


def test_rollouts_that_are_short_on_purpose_are_marked(run: Callable[..., list[Row]]):
    rows = run(replace(SMALL, rollout_tokens=1, rollout_tokens_last=SMALL.max_tokens), group_relative)
    assert [row.get("short_on_purpose") for row in rows] == [True, True, None]


def test_too_many_truncated_completions_stop_the_run_with_a_reason(run: Callable[..., list[Row]]):
    strict = replace(SMALL, max_tokens=1, max_truncated_fraction=0.0)
    recorded: list[Row] = []
    with pytest.raises(RunStopped, match="cut at max_tokens=1, more than max_truncated_fraction=0%"):
        run(strict, group_relative, record=recorded.append)
    assert len(recorded) == 1


def test_supervised_training_lowers_the_loss_and_decays_its_rate(
    service: ServiceClient, tiny_folder: Path, renderer: Renderer
):
    student = service.create_lora_training_client(str(tiny_folder), rank=4, seed=0)
    config = SupervisedConfig(
        steps=4, batch_size=8, learning_rate=1e-2, evaluate_every=99, held_out=2, max_tokens=5
    )
    rows = train_supervised(config, student, TASK, renderer=renderer, record=lambda row: None)
    assert rows[3]["loss_per_token"] < rows[0]["loss_per_token"]
    assert [row["learning_rate"] for row in rows[:-1]] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    assert [row.get("accuracy") is None for row in rows] == [False, True, True, True, False]


def test_a_task_that_runs_out_of_problems_says_at_which_step(
    service: ServiceClient, tiny_folder: Path, renderer: Renderer
):
    class Finite(GeneratedTask):
        def training_problems(self, seed: int) -> Iterator[Problem]:
            return islice(super().training_problems(seed), 7)

    task = Finite(name="sums", draw=TASKS["sums"].draw)
    student = service.create_lora_training_client(str(tiny_folder), rank=4, seed=0)
    recorded: list[Row] = []
    with pytest.raises(ValueError, match=r"step 2 needs 3 problems of task 'sums', and there are 1 left"):
        train(SMALL, student, task, renderer=renderer, advantages=group_relative, record=recorded.append)
    assert [row["step"] for row in recorded] == [0, 1]
    short = SupervisedConfig(steps=2, batch_size=4, evaluate_every=99, held_out=2, max_tokens=5)
    with pytest.raises(ValueError, match="step 1 needs 4 examples, and there are 3 left"):
        train_supervised(short, student, task, renderer=renderer, record=recorded.append)


def test_a_batch_without_anything_to_train_makes_no_step(
    service: ServiceClient, tiny_folder: Path, renderer: Renderer
):
    student = service.create_lora_training_client(str(tiny_folder), rank=4, seed=0)
    [problem] = TASK.held_out(1)
    example = renderer.training_example(with_answer(problem))
    masked = replace(example, mask=np.zeros_like(example.mask))
    config = SupervisedConfig(steps=1, batch_size=2, evaluate_every=99)
    before = student.forward([supervised_datum(example)], "cross_entropy").result().metrics["loss:sum"]
    with pytest.raises(ValueError, match="no token of a batch of 2 examples is to be trained"):
        train_on_examples(
            config, student, iter([masked] * 2), measure=lambda sampler: {}, record=lambda row: None
        )
    after = student.forward([supervised_datum(example)], "cross_entropy").result().metrics["loss:sum"]
    assert after == before
    halves = replace(example, mask=0.25 * example.mask)
    rows = train_on_examples(
        config, student, iter([halves, halves]), measure=lambda sampler: {}, record=lambda row: None
    )
    trained = example.mask[1:].sum()
    assert rows[0]["trained_tokens"] == 0.5 * trained
    assert rows[0]["loss_per_token"] == pytest.approx(before / trained, rel=1e-4)


# ---- evaluation ----


def test_evaluation_is_greedy_and_repeats_itself(base: SamplingClient, renderer: Renderer):
    problems = TASK.held_out(5)
    first = evaluate(base, problems, renderer=renderer, task=TASK, max_tokens=4)
    assert first == evaluate(base, problems, renderer=renderer, task=TASK, max_tokens=4)
    assert len(first.correct) == 5


def test_kl_figures_of_a_real_batch_are_the_mean_over_its_tokens(
    base: SamplingClient, renderer: Renderer, teacher: Teacher
):
    groups = sample_groups(base, renderer)
    scores = teacher.score(groups)
    assert kl_figures(groups, scores)["reverse_kl"] == pytest.approx(
        float(flat(kl_per_token(groups, scores)).mean()), abs=1e-6
    )
