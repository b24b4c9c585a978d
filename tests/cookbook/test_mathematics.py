"""Full-size data on tiny local files of the same shape: DeepMath, AIME, OpenThoughts."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from cookbook.hub_data import HubDataError, Source
from cookbook.mathematics import AIME_2024, DEEPMATH, INSTRUCTION, MathTask, ProblemSet, reasoning_examples
from cookbook.renderers import Renderer
from cookbook.rollouts import Problem


def write(path: Path, rows: list[dict[str, Any]]) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(name=str(path))


@pytest.fixture
def task(tmp_path: Path) -> MathTask:
    """The columns are those of zwhe99/DeepMath-103K and HuggingFaceH4/aime_2024."""
    deepmath = [
        {
            "question": f"What is {n} / 4?",
            "final_answer": f"\\frac{{{n}}}{{4}}",
            "difficulty": 5.0,
            "topic": "Arithmetic",
            "r1_solution_1": "Divide.",
        }
        for n in range(1, 6)
    ]
    aime = [
        {"id": n, "problem": f"Find {n} + 100.", "solution": "Add.", "answer": str(n + 100), "year": "2024"}
        for n in range(3)
    ]
    return MathTask(
        training=ProblemSet(
            source=write(tmp_path / "deepmath.jsonl", deepmath),
            question=DEEPMATH.question,
            answer=DEEPMATH.answer,
        ),
        examination=ProblemSet(
            source=write(tmp_path / "aime.jsonl", aime), question=AIME_2024.question, answer=AIME_2024.answer
        ),
    )


def test_training_goes_through_one_set_again_and_again_in_another_order_each_time(task: MathTask):
    texts = [problem.messages[0]["content"] for problem in islice(task.training_problems(seed=3), 10)]
    first, second = texts[:5], texts[5:]
    assert sorted(first) == sorted(second) == [f"What is {n} / 4?{INSTRUCTION}" for n in range(1, 6)]
    assert first != second
    assert texts == [p.messages[0]["content"] for p in islice(task.training_problems(seed=3), 10)]
    assert texts[:5] != [p.messages[0]["content"] for p in islice(task.training_problems(seed=4), 5)]


def test_the_examination_is_another_set_in_its_own_order(task: MathTask):
    assert [problem.answer for problem in task.held_out(3)] == ["100", "101", "102"]
    with pytest.raises(HubDataError, match=r"aime\.jsonl has 3 problems, not 30"):
        task.held_out(30)


@pytest.mark.parametrize(
    ("answer", "reply", "right"),
    [
        ("\\frac{1}{2}", "So the answer is \\boxed{0.5}.", True),
        ("\\frac{1}{2}", "So the answer is \\boxed{\\frac{2}{4}}.", True),
        ("204", "First \\boxed{203}, no: \\boxed{204}", True),
        ("204", "\\boxed{205}", False),
        ("204", "The answer is 204", False),
        ("x^2 + 1", "\\boxed{1 + x^2}", True),
        ("204", "", False),
    ],
)
def test_answers_are_compared_as_mathematics_and_have_to_be_boxed(answer: str, reply: str, right: bool):
    grade = MathTask().grade(Problem(messages=(), answer=answer), reply)
    assert (grade.correct, grade.reward) == (right, float(right))


def test_a_row_without_its_column_is_answered_with_those_it_has(tmp_path: Path):
    source = write(tmp_path / "rows.jsonl", [{"prompt": "2 + 2", "final_answer": "4"}])
    problems = ProblemSet(source=source, question="question", answer="final_answer")
    with pytest.raises(
        HubDataError, match=r"no text in column 'question'; its columns are \['final_answer', 'prompt'\]"
    ):
        MathTask(examination=problems).held_out(1)


def test_a_file_that_is_not_there_and_one_without_rows_are_named(tmp_path: Path):
    with pytest.raises(HubDataError, match=r"there is no file .*nowhere\.jsonl"):
        next(Source(name=str(tmp_path / "nowhere.jsonl")).rows())
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(HubDataError, match=r"empty\.jsonl has no rows"):
        next(Source(name=str(empty)).endless(seed=0))


# ---- OpenThoughts ----


def thought(question: str, answer: str) -> dict[str, Any]:
    """A row as open-thoughts/OpenThoughts3-1.2M has them."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"difficulty": 6, "source": "ai2-adapt-dev", "domain": "math", "conversations": turns}


def test_reasoning_is_learned_from_the_reply_on_and_long_conversations_are_left_out(
    tmp_path: Path, renderer: Renderer
):
    rows = [
        thought("What is two and three?", "<think>two, three</think> five"),
        thought("long", "word " * 400),
    ]
    source = write(tmp_path / "thoughts.jsonl", rows)
    [example, again] = islice(reasoning_examples(renderer, seed=0, longest=200, source=source), 2)
    assert renderer.text(example.tokens).startswith("<|im_start|>user\nWhat is two and three?")
    learned = [token for token, weight in zip(example.tokens, example.mask, strict=True) if weight]
    assert renderer.text(learned) == "<think>two, three</think> five<|im_end|>"
    assert again.tokens == example.tokens
    many = write(tmp_path / "many.jsonl", [rows[0]] * 1000)
    with pytest.raises(HubDataError, match="1000 conversations in a row exceed 5 tokens"):
        next(reasoning_examples(renderer, seed=0, longest=5, source=many))


def test_conversations_of_another_shape_are_refused(tmp_path: Path, renderer: Renderer):
    other = write(tmp_path / "other.jsonl", [{"messages": []}])
    with pytest.raises(HubDataError, match=r"no column conversations; its columns are \['messages'\]"):
        next(reasoning_examples(renderer, seed=0, longest=100, source=other))
    speaker = write(tmp_path / "speaker.jsonl", [{"conversations": [{"from": "narrator", "value": "Once"}]}])
    with pytest.raises(HubDataError, match="another shape than from, value: KeyError"):
        next(reasoning_examples(renderer, seed=0, longest=100, source=speaker))
