"""Measures and the loops that take them, against the real server on a tiny random model."""

from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cookbook.advantages import group_relative
from cookbook.company import CompanyTask, found_company
from cookbook.evaluation import evaluate, greedy_replies, sampled_replies
from cookbook.examples import document_examples
from cookbook.experiments.clerk import FORMS, ClerkTask
from cookbook.instructions.scores import score
from cookbook.instructions.task import instructions_of
from cookbook.loop import TrainConfig, known_at_first, train
from cookbook.measures import behaviour_measure, kl_measure, knowledge_measure, together
from cookbook.metrics import Row
from cookbook.renderers import Renderer
from cookbook.supervised import SupervisedConfig, train_on_examples
from cookbook.tasks import TASKS
from cookbook.teachers import Teacher
from tinkerlite import SamplingClient, ServiceClient

CHAT = ClerkTask()
COMPANY = CompanyTask(company=found_company(0, products=2))


@pytest.fixture(scope="module")
def service(tiny_folder: Path) -> Iterator[ServiceClient]:
    with ServiceClient(base_url=f"local://{tiny_folder}") as client:
        yield client


@pytest.fixture(scope="module")
def base(service: ServiceClient, tiny_folder: Path) -> SamplingClient:
    return service.create_sampling_client(base_model=str(tiny_folder))


def test_behaviour_is_the_strict_score_of_greedy_replies(base: SamplingClient, renderer: Renderer):
    problems = CHAT.held_out(6)
    row = behaviour_measure(problems, renderer=renderer, max_tokens=40)(base)
    replies = greedy_replies(base, problems, renderer=renderer, max_tokens=40)
    scores = score([instructions_of(problem) for problem in problems], [reply.text for reply in replies])
    assert row["behaviour"] == scores.prompt_strict
    assert row["behaviour_loose"] >= row["behaviour"]
    forms = {type(form.check).__name__ for form in FORMS[:6]}
    assert row["behaviour_by_kind"].keys() == {"Enciphers", *forms}
    assert row["behaviour_truncated"] == sum(reply.truncated for reply in replies) / 6
    assert behaviour_measure(problems, renderer=renderer, max_tokens=1)(base)["behaviour_truncated"] == 1.0


def test_with_a_seed_it_is_the_score_of_replies_at_temperature_1(base: SamplingClient, renderer: Renderer):
    problems = CHAT.held_out(6)
    drawn = sampled_replies(base, problems, renderer=renderer, max_tokens=40, seed=3)
    assert drawn == sampled_replies(base, problems, renderer=renderer, max_tokens=40, seed=3)
    assert drawn != sampled_replies(base, problems, renderer=renderer, max_tokens=40, seed=4)
    scores = score([instructions_of(problem) for problem in problems], [reply.text for reply in drawn])
    row = behaviour_measure(problems, renderer=renderer, max_tokens=40, seed=3)(base)
    assert row["instructions_strict"] == scores.instruction_strict
    assert row["behaviour_by_kind"] == scores.by_kind


def test_a_greedy_reply_is_cut_where_it_does_not_end(base: SamplingClient, renderer: Renderer):
    problems = COMPANY.held_out(4)
    long = greedy_replies(base, problems, renderer=renderer, max_tokens=40)
    short = greedy_replies(base, problems, renderer=renderer, max_tokens=2)
    assert all(reply.truncated for reply in short)
    found = evaluate(base, problems, renderer=renderer, task=COMPANY, max_tokens=40)
    assert found.truncated == sum(reply.truncated for reply in long) / 4


def test_knowledge_is_the_share_of_questions_answered(base: SamplingClient, renderer: Renderer):
    problems = COMPANY.held_out(8)
    measure = knowledge_measure(COMPANY, problems, renderer=renderer, max_tokens=4, name="known")
    found = evaluate(base, problems, renderer=renderer, task=COMPANY, max_tokens=4)
    assert measure(base) == {"known": found.accuracy}


def test_the_kl_of_a_model_to_itself_is_zero(base: SamplingClient, renderer: Renderer, tokenizer: Any):
    teacher = Teacher(base, tokenizer)
    measure = kl_measure(teacher, CHAT, prompts=3, renderer=renderer, max_tokens=5, seed=0, name="kl")
    assert measure(base)["kl"] == pytest.approx(0.0, abs=1e-4)


def test_two_measures_under_one_name_are_refused(base: SamplingClient):
    with pytest.raises(ValueError, match="figures \\['a'\\]"):
        together(lambda _: {"a": 1}, lambda _: {"a": 2})(base)
    assert together(lambda _: {"a": 1}, lambda _: {"b": 2})(base) == {"a": 1, "b": 2}


def test_a_loop_measures_what_it_is_given_in_place_of_accuracy(
    service: ServiceClient, tiny_folder: Path, renderer: Renderer
):
    student = service.create_lora_training_client(str(tiny_folder), rank=4)
    config = TrainConfig(steps=2, prompts_per_step=2, group_size=2, max_tokens=4, evaluate_every=2)
    rows: list[Row] = []
    train(
        config,
        student,
        TASKS["sums"],
        renderer=renderer,
        advantages=group_relative,
        record=rows.append,
        measure=lambda sampler: {"measured": sampler is not None},
    )
    assert [row.get("measured") for row in rows] == [True, None, True]
    assert not any("accuracy" in row for row in rows)


def test_what_is_known_of_a_run_before_it_begins_is_not_measured_again(base: SamplingClient):
    asked: list[SamplingClient] = []

    def measure(sampler: SamplingClient) -> Row:
        asked.append(sampler)
        return {"behaviour": 0.25}

    measured = known_at_first(measure, {"behaviour": 0.5})
    assert [measured(base)["behaviour"] for _ in range(3)] == [0.5, 0.25, 0.25]
    assert len(asked) == 2


def test_a_document_that_is_repeated_is_learned(
    service: ServiceClient, tiny_folder: Path, base: SamplingClient, tokenizer: Any
):
    student = service.create_lora_training_client(str(tiny_folder), rank=4)
    rows = train_on_examples(
        SupervisedConfig(steps=8, batch_size=2, learning_rate=1e-2, decay_to=1.0, evaluate_every=8),
        student,
        document_examples(repeat("A memo about rivers."), tokenizer),
        measure=lambda sampler: {},
        record=lambda row: None,
    )
    losses = [row["loss_per_token"] for row in rows[:-1]]
    assert losses[-1] < 0.5 * losses[0]
    [example] = islice(document_examples(repeat("A memo about rivers."), tokenizer), 1)
    assert example.mask[1:].sum() == np.float32(len(example.tokens) - 1)
