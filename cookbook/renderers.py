"""Renderers: from chat messages to tokens, and from a completion back to text.

A conversation is first laid out as *segments* of text, each given or made by the assistant, and
every segment is tokenized on its own. So a training example begins with exactly the tokens that
the sampler was prompted with, even where a tokenizer would merge across the border.

    prompt    <|im_start|>user\\n2 + 2<|im_end|>\\n<|im_start|>assistant\\n    given
    reply     4<|im_end|>                                                   trained

Knows nothing about losses or shifting (`datums`), tasks or the server.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray


class RendererError(ValueError):
    """Messages, a tokenizer or a chat template that cannot be rendered faithfully."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    """"system", "user" or "assistant"."""
    content: str


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of a text; special tokens written out in it become themselves."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> Any:
        """Text of token ids."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """The token-to-id map, added tokens included."""
        ...

    def get_added_vocab(self) -> dict[str, int]:
        """Special and other added tokens only."""
        ...

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """The same by id, as `AddedToken`s, which know whether they are special."""
        ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> Any:
        """The model's own layout of a conversation, as text when `tokenize` is off."""
        ...


@dataclass(frozen=True)
class Segment:
    """A run of text that is either given (`trained` false) or to be produced by the model."""

    text: str
    trained: bool


@dataclass(frozen=True, eq=False)
class RenderedExample:
    """A conversation as tokens, not yet shifted."""

    tokens: list[int]
    mask: NDArray[np.float32]
    """(len(tokens),): 1 on replies and the tokens that end them, 0 on everything given."""


THOUGHT, END_OF_THOUGHT = "<think>", "</think>"


@dataclass(frozen=True)
class Reply:
    """What a completion says, and whether the model ended it itself."""

    text: str
    """Without what a reasoning model thinks before it answers; empty if it was cut while thinking."""
    finished: bool


Layout = Callable[[Sequence[Message], bool], list[Segment]]
"""Messages, and whether the assistant speaks next, to segments."""


class Renderer:
    """One way to lay out conversations, for one tokenizer. Make it with `chatml` or `chat_template`."""

    def __init__(self, tokenizer: Tokenizer, layout: Layout, end_of_turn: str) -> None:
        self.tokenizer = tokenizer
        self._layout = layout
        vocabulary = tokenizer.get_vocab()
        if end_of_turn not in vocabulary:
            raise RendererError(
                f"{end_of_turn!r} is not one token of this tokenizer, so it cannot end a turn. "
                "Use the renderer of the model's own chat template: chat_template(tokenizer)."
            )
        self.stop_tokens: list[int] = [vocabulary[end_of_turn]]
        """Ids that end a reply. They belong to the reply and are trained."""

    def generation_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens after which the model writes the assistant's next reply."""
        return [token for segment in self._layout(messages, True) for token in self._encode(segment)]

    def training_example(self, messages: Sequence[Message]) -> RenderedExample:
        """Tokens of a conversation that ends with the assistant, and which of them to learn.

        Raises:
            RendererError: the last message is not the assistant's.
        """
        if not messages or messages[-1]["role"] != "assistant":
            raise RendererError("a training example ends with a message of the assistant; this one does not")
        tokens: list[int] = []
        mask: list[float] = []
        for segment in self._layout(messages, False):
            encoded = self._encode(segment)
            tokens += encoded
            mask += [float(segment.trained)] * len(encoded)
        return RenderedExample(tokens, np.asarray(mask, dtype=np.float32))

    def parse(self, completion_tokens: Sequence[int]) -> Reply:
        """The text before the first stop token, thoughts left out; unfinished when there is none."""
        tokens = list(completion_tokens)
        ends = [index for index, token in enumerate(tokens) if token in self.stop_tokens]
        said = tokens[: ends[0]] if ends else tokens
        text = str(self.tokenizer.decode(said, skip_special_tokens=True))
        return Reply(_after_thoughts(text, begins_inside=self._thinks_first), finished=bool(ends))

    @cached_property
    def _thinks_first(self) -> bool:
        """Whether prompts end inside a thought, as those of models that always think do."""
        segments = self._layout([Message(role="user", content="A")], True)
        prompt = "".join(segment.text for segment in segments)
        return prompt.rfind(THOUGHT) > prompt.rfind(END_OF_THOUGHT)

    def token_texts(self, tokens: Sequence[int]) -> list[str]:
        """Each token as text on its own, for display: parts of one character show as U+FFFD."""
        return [str(self.tokenizer.decode([token], skip_special_tokens=False)) for token in tokens]

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text, special tokens written out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False))

    def _encode(self, segment: Segment) -> list[int]:
        return list(self.tokenizer.encode(segment.text, add_special_tokens=False))


def chatml(tokenizer: Tokenizer) -> Renderer:
    """Plain ChatML: role headers and nothing else; no system line is added.

    The shortest prompt that an instruction-tuned ChatML model understands.

    Raises:
        RendererError: the tokenizer has no ChatML tokens.
    """

    def layout(messages: Sequence[Message], reply_next: bool) -> list[Segment]:
        segments: list[Segment] = []
        given = ""
        for message in messages:
            given += f"<|im_start|>{message['role']}\n"
            if message["role"] == "assistant":
                segments += [Segment(given, False), Segment(f"{message['content']}<|im_end|>", True)]
                given = "\n"
            else:
                given += f"{message['content']}<|im_end|>\n"
        if reply_next:
            segments.append(Segment(f"{given}<|im_start|>assistant\n", False))
        return segments

    return Renderer(tokenizer, layout, "<|im_end|>")


def chat_template(tokenizer: Tokenizer) -> Renderer:
    """The layout of the tokenizer's own chat template, default system line included.

    Raises:
        RendererError: when made, if there is no template or it does not end a reply with one special token;
            when rendering, if it refuses the messages (some know no system role), or rewrites earlier turns
            once later ones are known (templates that drop old reasoning do), so that no prefix of an example
            would be what was sampled from.
    """

    def written(messages: Sequence[Message], reply_next: bool) -> str:
        conversation = [{"role": message["role"], "content": message["content"]} for message in messages]
        try:
            text = tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=reply_next
            )
        except Exception as error:  # there is no template, or it is a program that fails in its own way
            raise RendererError(
                f"the tokenizer's chat template cannot lay these messages out: {error}\n"
                "Use chatml(tokenizer), or lay the conversation out with Renderer(...)."
            ) from error
        return str(text)

    end_of_turn = _end_of_turn(tokenizer, written)

    def layout(messages: Sequence[Message], reply_next: bool) -> list[Segment]:
        segments: list[Segment] = []
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            header = _continuation(done, written(messages[:index], True))
            body = _continuation(done + header, written(messages[: index + 1], False))
            reply, found, _ = body.partition(end_of_turn)
            if not found:
                raise RendererError(f"the chat template wrote a reply without its end {end_of_turn!r}")
            segments += [Segment(header, False), Segment(reply + end_of_turn, True)]
            done += header + reply + end_of_turn
        if reply_next:
            segments.append(Segment(_continuation(done, written(messages, True)), False))
        return segments

    return Renderer(tokenizer, layout, end_of_turn)


RENDERERS: dict[str, Callable[[Tokenizer], Renderer]] = {"chatml": chatml, "template": chat_template}
"""Renderers by the names that recipes' `--renderer` takes."""


def token_map_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of the token-to-id map: equal hashes mean that ids mean the same tokens.

    The size of the embedding says nothing: models of one family pad one vocabulary differently.
    """
    listing = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(listing.encode()).hexdigest()


def _after_thoughts(text: str, *, begins_inside: bool) -> str:
    if END_OF_THOUGHT in text:
        return text.rpartition(END_OF_THOUGHT)[2].lstrip()
    return "" if begins_inside or text.lstrip().startswith(THOUGHT) else text


def _end_of_turn(tokenizer: Tokenizer, written: Callable[[Sequence[Message], bool], str]) -> str:
    """The special token that the template writes right after a reply."""
    marker = "REPLY"
    text = written([Message(role="user", content="A"), Message(role="assistant", content=marker)], False)
    tail = text.rpartition(marker)[2].lstrip()
    ends = [token for token in tokenizer.get_added_vocab() if token and tail.startswith(token)]
    if not ends:
        raise RendererError(
            f"the chat template ends a reply with {tail!r}, which begins with no special token. "
            "Use chatml(tokenizer), or lay the conversation out with Renderer(...)."
        )
    return max(ends, key=len)


def _continuation(done: str, text: str) -> str:
    if not text.startswith(done):
        raise RendererError(
            "the chat template changes earlier turns when later ones are added: "
            f"{text[: len(done)]!r} is not {done!r}. Train on one reply at a time, or use another renderer."
        )
    return text[len(done) :]
