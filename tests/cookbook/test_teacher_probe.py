"""What is asked of a teacher before a run depends on it, on the real server with a tiny model."""

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cookbook.datums import Floats
from cookbook.renderers import Message, Renderer, chat_template, chatml
from cookbook.rollouts import Problem
from cookbook.tasks import TASKS
from cookbook.teacher_probe import LAYOUT_MATTERS, examine_teacher, probe_teacher
from cookbook.teachers import Teacher
from tinkerlite import CapabilityError, SamplingClient, ServiceClient

TASK = TASKS["larger"]


@pytest.fixture(scope="module")
def service(tiny_folder: Path) -> Iterator[ServiceClient]:
    with ServiceClient(base_url=f"local://{tiny_folder}") as client:
        yield client


@pytest.fixture(scope="module")
def verbose(tokenizer: Any) -> Renderer:
    """A layout that begins with a system line."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = "<|im_start|>system\nBe brief.<|im_end|>\n" + tokenizer.chat_template
    return chat_template(other)


@pytest.fixture(scope="module")
def base(service: ServiceClient, tiny_folder: Path) -> SamplingClient:
    return service.create_sampling_client(base_model=str(tiny_folder))


def test_both_prompts_are_shown_and_the_answers_scored_as_the_run_would(
    base: SamplingClient, tokenizer: Any, renderer: Renderer, verbose: Renderer
):
    teacher = Teacher(base, tokenizer, verbose)
    [problem] = islice(TASK.training_problems(0), 1)
    probe = probe_teacher(teacher, [problem], renderer=renderer, layouts={})
    question = problem.messages[0]["content"]
    assert probe.student_reads == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert probe.teacher_reads == "<|im_start|>system\nBe brief.<|im_end|>\n" + probe.student_reads
    answer = tokenizer.encode(f"{problem.answer}<|im_end|>", add_special_tokens=False)
    [scores] = teacher.score_after([(verbose.generation_prompt(problem.messages), answer)])
    assert probe.right_answers == pytest.approx(float(np.mean(scores)), abs=1e-5)
    assert len(probe.lines()) == 3


def test_a_layout_in_which_right_answers_are_likelier_is_worth_a_warning(
    base: SamplingClient, tokenizer: Any, renderer: Renderer, verbose: Renderer
):
    layouts = {"chatml": renderer, "verbose": verbose}
    problems = list(islice(TASK.training_problems(0), 4))
    probes = {
        name: probe_teacher(Teacher(base, tokenizer, layout), problems, renderer=renderer, layouts=layouts)
        for name, layout in layouts.items()
    }
    # A random model has its preferences, too.
    worse, better = sorted(probes, key=lambda name: probes[name].right_answers)
    difference = probes[better].right_answers - probes[worse].right_answers
    assert difference > LAYOUT_MATTERS
    other = probes[worse].in_other_layouts
    assert other == pytest.approx({better: probes[better].right_answers}, abs=1e-5)
    assert probes[worse].lines()[-1].endswith(f"Try --teacher-renderer {better}")
    assert "warning" not in "\n".join(probes[better].lines())


def test_layouts_that_read_alike_are_not_compared(base: SamplingClient, tokenizer: Any):
    """The tiny model's own template is ChatML."""
    probe = examine_teacher(Teacher(base, tokenizer), TASK, chatml(tokenizer), tokenizer)
    assert probe.in_other_layouts == {}


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (lambda scores: scores[1:], "returned 1 logprobs for 2 tokens"),
        (lambda scores: scores * np.nan, "returned nan as the logprob"),
        (lambda scores: -scores, "finite and at most 0"),
    ],
)
def test_a_backend_that_does_not_return_logprobs_is_found_before_step_0(
    base: SamplingClient,
    tokenizer: Any,
    renderer: Renderer,
    returned: Callable[[Floats], Floats],
    complaint: str,
):
    class OnAnotherBackend(Teacher):
        def score_after(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Floats]:
            return [returned(scores) for scores in super().score_after(pairs)]

    problem = Problem(messages=(Message(role="user", content="1 + 1 ="),), answer="2")
    with pytest.raises(CapabilityError, match=complaint):
        probe_teacher(OnAnotherBackend(base, tokenizer), [problem], renderer=renderer, layouts={})
