"""Chat prompts from a file: what people asked, without what anybody answered.

The file has one JSON object a line with a list of `messages` (role, content), as the Tulu-3 mixture of
supervised data has (allenai/tulu-3-sft-mixture on the hub). Written with the `datasets` package:

    load_dataset("allenai/tulu-3-sft-mixture", split="train").to_json("data/tulu-3.jsonl")

The file is read a line at a time, so its size does not matter. Knows nothing about models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from cookbook.renderers import Message
from cookbook.rollouts import Grade, Problem
from cookbook.tasks import is_held_out

ROLES = ("system", "user", "assistant")


class ChatFileError(ValueError):
    """No file, one without usable prompts, or a line of another shape; the message names it."""


@dataclass(frozen=True)
class ChatPrompts:
    """The prompts of a file, cut before the first reply. Implements `rollouts.Task`."""

    path: Path
    longest: int = 4000
    """Characters; longer prompts are left out, since few fit a context together with their reply."""
    name: str = "chat"

    def __post_init__(self) -> None:
        """Raises `ChatFileError` if there is no such file: at once, not when a run needs it."""
        if not self.path.is_file():
            raise ChatFileError(f"there is no file {self.path}: {__name__} says where it comes from")

    def training_problems(self, seed: int) -> Iterator[Problem]:
        """All prompts but the held-out ones in a random order, again and again."""
        random = Random(f"{self.name} train {seed}")
        while True:
            yield from self._problems(random, held_out=False)

    def held_out(self, count: int) -> list[Problem]:
        """The first `count` held-out prompts, always the same.

        Raises:
            ChatFileError: there are fewer.
        """
        found = list(islice(self._problems(Random(f"{self.name} held out"), held_out=True), count))
        if len(found) < count:
            raise ChatFileError(f"{self.path} has {len(found)} held-out prompts, not {count}")
        return found

    def grade(self, problem: Problem, reply: str) -> Grade:
        """Chat has no right answer: the reward is 0, and nothing counts as correct."""
        return Grade(reward=0.0, correct=False)

    @cached_property
    def _lines(self) -> tuple[int, ...]:
        """Where each line begins, in bytes."""
        starts: list[int] = []
        position = 0
        with self.path.open("rb") as file:
            for line in file:
                if line.strip():
                    starts.append(position)
                position += len(line)
        return tuple(starts)

    def _problems(self, random: Random, *, held_out: bool) -> Iterator[Problem]:
        found = 0
        with self.path.open("rb") as file:
            for index in random.sample(range(len(self._lines)), len(self._lines)):
                file.seek(self._lines[index])
                messages = _prompt(file.readline(), f"{self.path}, line {index + 1}")
                text = "\n".join(message["content"] for message in messages)
                if messages and len(text) <= self.longest and is_held_out(text) == held_out:
                    found += 1
                    yield Problem(messages=messages, answer="")
        if not found:
            kind = "held-out" if held_out else "training"
            raise ChatFileError(f"{self.path} has no {kind} prompts of up to {self.longest} characters")


def _prompt(line: bytes, where: str) -> tuple[Message, ...]:
    """The messages before the first reply; none if they do not end with the user's."""
    try:
        messages: list[Any] = json.loads(line)["messages"]
        turns = [Message(role=message["role"], content=message["content"]) for message in messages]
    except (ValueError, KeyError, TypeError) as error:
        raise ChatFileError(f"{where} has no list of messages: {error!r}") from error
    for turn in turns:
        if turn["role"] not in ROLES or not isinstance(turn["content"], str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ChatFileError(f"{where} has a message that is not of the shape role, content: {turn!r}")
    first_reply = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
    prompt = tuple(turns[:first_reply])
    return prompt if prompt and prompt[-1]["role"] == "user" else ()
