"""Chat prompts from a local file of the shape of Tulu-3."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from cookbook.chat_prompts import ChatFileError, ChatPrompts
from cookbook.rollouts import Problem
from cookbook.tasks import is_held_out


def row(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"id": "x", "messages": messages, "source": "somewhere"} | more


def write(folder: Path, *rows: dict[str, Any]) -> ChatPrompts:
    path = folder / "chat.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in rows) + "\n\n", encoding="utf-8")
    return ChatPrompts(path)


def many(count: int) -> list[dict[str, Any]]:
    return [row(("user", f"Frage {n}: ünïcode?"), ("assistant", "A reply.")) for n in range(count)]


def text(problem: Problem) -> str:
    return problem.messages[-1]["content"]


def test_a_prompt_is_what_comes_before_the_first_reply(tmp_path: Path):
    task = write(
        tmp_path,
        *[
            row(("system", "Be brief."), ("user", f"Hi {n}"), ("assistant", "Hello"), ("user", "And now?"))
            for n in range(8)
        ],
    )
    problem = next(task.training_problems(0))
    assert [message["role"] for message in problem.messages] == ["system", "user"]
    assert text(problem).startswith("Hi ")


def test_training_goes_through_all_prompts_but_the_held_out_ones_and_starts_again(tmp_path: Path):
    task = write(tmp_path, *many(60))
    held_out = {text(p) for p in task.held_out(5)}
    stream = task.training_problems(0)
    count = sum(not is_held_out(f"Frage {n}: ünïcode?") for n in range(60))
    first, second = ([text(p) for p in islice(stream, count)] for _ in range(2))
    assert len(set(first)) == count
    assert set(first) == set(second)
    assert first != second
    assert not held_out & set(first)


def test_a_seed_gives_the_same_order_again(tmp_path: Path):
    task = write(tmp_path, *many(30))
    first, again, other = ([text(p) for p in islice(task.training_problems(s), 10)] for s in (1, 1, 2))
    assert first == again != other


def test_prompts_that_are_too_long_or_do_not_end_with_the_user_are_left_out(tmp_path: Path):
    task = write(tmp_path, row(("user", "x" * 5000)), row(("assistant", "Hello!")), row(("system", "Hm.")))
    with pytest.raises(ChatFileError, match="no training prompts of up to 4000 characters"):
        next(task.training_problems(0))


def test_a_file_that_is_not_there_is_missed_at_once(tmp_path: Path):
    with pytest.raises(ChatFileError, match=r"no file .*none.jsonl: cookbook.chat_prompts says where"):
        ChatPrompts(tmp_path / "none.jsonl")


def test_too_few_held_out_prompts_is_an_error(tmp_path: Path):
    with pytest.raises(ChatFileError, match="held-out prompts, not 50"):
        write(tmp_path, *many(40)).held_out(50)


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        '{"prompt": "Hi"}',
        '{"messages": ["Hi"]}',
        '{"messages": [{"role": "bot", "content": "x"}]}',
    ],
)
def test_a_line_of_another_shape_is_named(tmp_path: Path, line: str):
    path = tmp_path / "chat.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ChatFileError, match=r"chat\.jsonl, line 1"):
        next(ChatPrompts(path).training_problems(0))
