"""Chat completions: messages in, by the model's own chat template; the assistant's next one out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict

from tinkerlite.types import SampleResponse
from tinkerlite_server.engine.protocols import ChatMessage, Tokenizer
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.routes.exchange import Body, Owner, Served, parse, read_json
from tinkerlite_server.routes.openai.answers import JSON, answer
from tinkerlite_server.routes.openai.asking import Asked, check_asked, check_supported, check_topk, questions
from tinkerlite_server.routes.openai.models import find_weights
from tinkerlite_server.routes.openai.running import Exchange
from tinkerlite_server.routes.openai.scores import chat_scores
from tinkerlite_server.routes.openai.transcript import Piece

router = APIRouter()

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""As templates know them: "developer" is a newer name for "system"."""


class Part(Body):
    """A part of a message's content."""

    type: str
    text: str | None = None


class Message(Body):
    """One message. Fields that are not here are refused if they hold something."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[Part] | None = None
    name: str | None = None


class ChatCompletion(Asked):
    """Body of chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


@router.post("/chat/completions")
async def chat_completion(request: Request, service: Served, owner: Owner) -> Response:
    """Answer a conversation."""
    body = parse(ChatCompletion, await read_json(request))
    limits = service.settings.limits
    check_asked(body, 1, limits)
    if body.top_logprobs is not None and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true", field="top_logprobs")
    topk = check_topk("top_logprobs", body.top_logprobs or 0, limits)
    conversation = _conversation(body.messages)
    weights = find_weights(body.model, service, owner)
    tokenizer = await asyncio.to_thread(service.tokenizer, weights.info.name)
    prompt = await asyncio.to_thread(tokenizer.encode_chat, conversation)
    return await answer(
        Exchange(request=request, service=service, owner=owner),
        body,
        weights,
        questions(body, [prompt], max_tokens=_max_tokens(body), topk=topk),
        tokenizer,
        ChatShape(tokenizer, with_scores=bool(body.logprobs)),
    )


def _max_tokens(body: ChatCompletion) -> int | None:
    """The limit by its new name or its old one."""
    new, old = body.max_completion_tokens, body.max_tokens
    if new is not None and old is not None and new != old:
        raise BadRequest(
            f"max_completion_tokens is {new} and max_tokens is {old}; they mean the same, so send one",
            field="max_completion_tokens",
        )
    return old if new is None else new


def _conversation(messages: Sequence[Message]) -> list[ChatMessage]:
    if not messages:
        raise BadRequest("messages is empty; send at least one", field="messages")
    return [_message(message, f"messages.{index}") for index, message in enumerate(messages)]


def _message(message: Message, field: str) -> ChatMessage:
    if message.role not in ROLES:
        raise BadRequest(
            f"{field}.role is {message.role!r}; this server knows {sorted(ROLES)}", field=f"{field}.role"
        )
    check_supported(message.model_extra, f"{field}.")
    content = _text(message.content, f"{field}.content")
    said: ChatMessage = {"role": ROLES[message.role], "content": content}
    if message.name is not None:
        said["name"] = message.name
    return said


def _text(content: str | list[Part] | None, field: str) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise BadRequest(f"{field} is absent; it must be text", field=field)
    for index, part in enumerate(content):
        if part.type != "text" or part.text is None:
            raise BadRequest(
                f"{field}.{index} is of type {part.type!r}; this server reads parts of type 'text' alone",
                field=f"{field}.{index}",
            )
    return "".join(part.text or "" for part in content)


class ChatShape:
    """Implements `Shape`."""

    id_prefix = "chatcmpl"
    whole = "chat.completion"
    part = "chat.completion.chunk"
    drops_sample = False

    def __init__(self, tokenizer: Tokenizer, *, with_scores: bool) -> None:
        self._tokenizer = tokenizer
        self._with_scores = with_scores

    def choice(self, place: int, piece: Piece, response: SampleResponse) -> JSON:
        """See `Shape.choice`."""
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"message": message, "logprobs": self._scores(piece)}

    def opening(self, place: int) -> JSON:
        """See `Shape.opening`."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def growth(self, place: int, piece: Piece) -> JSON:
        """See `Shape.growth`."""
        return {"delta": {"content": piece.text}, "logprobs": self._scores(piece)}

    def ending(self) -> JSON:
        """See `Shape.ending`."""
        return {"delta": {}, "logprobs": None}

    def _scores(self, piece: Piece) -> dict[str, Any] | None:
        return chat_scores(piece.tokens, self._tokenizer) if self._with_scores else None
