"""Shaded answers: scores of a real teacher on a tiny random model, and how they are shown."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cookbook.renderers import Renderer
from cookbook.rollouts import Trajectory, rollout
from cookbook.shading import ShadedToken, diverges, page, penalty, shade, terminal_text
from cookbook.tasks import TASKS
from cookbook.teachers import Teacher
from tinkerlite import SamplingClient, ServiceClient

TASK = TASKS["sums"]


@pytest.fixture(scope="module")
def samplers(student_folder: Path, teacher_folder: Path) -> Iterator[tuple[SamplingClient, SamplingClient]]:
    """Student and teacher."""
    with ServiceClient(base_url=f"local://{student_folder},{teacher_folder}") as service:
        yield (
            service.create_sampling_client(base_model=str(student_folder)),
            service.create_sampling_client(base_model=str(teacher_folder)),
        )


def trajectories(sampler: SamplingClient, renderer: Renderer) -> list[Trajectory]:
    problems = list(islice(TASK.training_problems(0), 3))
    groups = rollout(sampler, problems, renderer=renderer, task=TASK, group_size=1, max_tokens=6, seed=0)
    return [t for group in groups for t in group.trajectories]


def test_penalties_are_the_kl_per_token_that_distillation_uses(
    samplers: tuple[SamplingClient, SamplingClient], renderer: Renderer, tokenizer: Any
):
    student, teacher = samplers
    problems = list(islice(TASK.training_problems(0), 3))
    groups = rollout(student, problems, renderer=renderer, task=TASK, group_size=1, max_tokens=6, seed=0)
    shaded = shade([t for group in groups for t in group.trajectories], teacher, renderer)
    scores = [of_one for [of_one] in Teacher(teacher, tokenizer).score(groups)]
    for tokens, group, teachers in zip(shaded, groups, scores, strict=True):
        expected = group.trajectories[0].logprobs - teachers
        np.testing.assert_allclose([penalty(token) for token in tokens], expected, atol=1e-5)


def test_a_greedy_answer_never_diverges_from_its_own_model(
    samplers: tuple[SamplingClient, SamplingClient], renderer: Renderer
):
    student, teacher = samplers
    problems = list(islice(TASK.training_problems(0), 3))
    groups = rollout(
        student, problems, renderer=renderer, task=TASK, group_size=1, max_tokens=6, temperature=0.0
    )
    answers = [t for group in groups for t in group.trajectories]
    assert not any(diverges(token) for tokens in shade(answers, student, renderer) for token in tokens)
    assert any(diverges(token) for tokens in shade(answers, teacher, renderer) for token in tokens)


TOKENS = [
    ShadedToken(text="We", student=-0.1, teacher=-6.1, choice="Ice"),
    ShadedToken(text=" add\n", student=-2.0, teacher=-1.0, choice=" add\n"),
    ShadedToken(text=" <b>", student=-1.0, teacher=-1.0, choice=" <b>"),
]


def test_in_a_terminal_objections_are_red_and_agreement_is_not_shaded():
    text = terminal_text(TOKENS)
    assert text.plain == "We add⏎\n <b>"
    styles = [str(span.style) for span in text.spans]
    assert styles[0] == "white on rgb(214,55,55)"
    assert len([style for style in styles if style]) == 2


def test_the_page_is_self_contained_and_escaped():
    shown = page("Title & more", "Intro", [("Question <1>", TOKENS)])
    assert "Title &amp; more" in shown
    assert "Question &lt;1&gt;" in shown
    assert "&lt;b&gt;" in shown
    assert "KL +6.00 nats" in shown
    for fetched in ("http://", "https://", "<script", "<link"):
        assert fetched not in shown
