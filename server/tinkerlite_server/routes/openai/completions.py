"""Completions: prompts as text or token ids in, what follows them out, and if asked the prompts too."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field

from tinkerlite.types import ModelInput, SampleResponse
from tinkerlite_server.engine.protocols import ModelInfo, Tokenizer
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.routes.exchange import Owner, Served, parse, read_json
from tinkerlite_server.routes.openai.answers import JSON, answer
from tinkerlite_server.routes.openai.asking import Asked, check_asked, check_topk, questions
from tinkerlite_server.routes.openai.models import find_weights
from tinkerlite_server.routes.openai.running import Exchange
from tinkerlite_server.routes.openai.scores import completion_scores
from tinkerlite_server.routes.openai.transcript import Piece, ScoredToken
from tinkerlite_server.settings import Limits
from tinkerlite_server.validation import text_tokens

router = APIRouter()

DEFAULT_MAX_TOKENS = 16
"""What clients of this endpoint expect when they name no limit."""

TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class Completion(Asked):
    """Body of completions."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    echo: bool | None = None
    logprobs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt."""

    ids: list[int]
    text: str
    """As it was sent, or what its ids say."""


@router.post("/completions")
async def completion(request: Request, service: Served, owner: Owner) -> Response:
    """Continue each prompt."""
    body = parse(Completion, await read_json(request))
    given = _prompts(body.prompt)
    _check(body, len(given), service.settings.limits)
    weights = find_weights(body.model, service, owner)
    tokenizer = await asyncio.to_thread(service.tokenizer, weights.info.name)
    prompts = await asyncio.to_thread(lambda: [_read(prompt, tokenizer, weights.info) for prompt in given])
    echoes = bool(body.echo)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    return await answer(
        Exchange(request=request, service=service, owner=owner),
        body,
        weights,
        questions(
            body,
            [prompt.ids for prompt in prompts],
            # To read a prompt is to sample a token after it; that one is dropped.
            max_tokens=max_tokens or 1,
            topk=body.logprobs or 0,
            prompt_logprobs=echoes and body.logprobs is not None,
        ),
        tokenizer,
        CompletionShape(
            tokenizer,
            prompts if echoes else None,
            with_scores=body.logprobs is not None,
            drops_sample=max_tokens == 0,
        ),
    )


def _prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise BadRequest("prompt is empty; send text, token ids, or a list of these", field="prompt")
    several: list[str | list[int]] = [each for each in prompt if not isinstance(each, int)]
    return several or [[each for each in prompt if isinstance(each, int)]]


def _check(body: Completion, prompts: int, limits: Limits) -> None:
    check_asked(body, prompts, limits)
    if body.logprobs is not None:
        check_topk("logprobs", body.logprobs, limits)
    if body.stream and body.max_tokens == 0:
        raise BadRequest("max_tokens is 0, so there is nothing to stream", field="max_tokens")
    if body.stream and body.echo and body.logprobs is not None:
        raise BadRequest("a stream cannot echo with logprobs; ask without stream", field="echo")


def _read(prompt: str | list[int], tokenizer: Tokenizer, info: ModelInfo) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(ids=tokenizer.encode(prompt), text=prompt)
    text_tokens(ModelInput.from_ints(prompt), info, "prompt")
    data = b"".join(map(tokenizer.token_bytes, prompt))
    return Prompt(ids=prompt, text=data.decode("utf-8", "replace"))


class CompletionShape:
    """Implements `Shape`.

    Args:
        echoed: the prompts, if they come before their completions.
    """

    id_prefix = "cmpl"
    whole = part = "text_completion"

    def __init__(
        self, tokenizer: Tokenizer, echoed: Sequence[Prompt] | None, *, with_scores: bool, drops_sample: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._echoed = echoed
        self._with_scores = with_scores
        self.drops_sample = drops_sample

    def choice(self, place: int, piece: Piece, response: SampleResponse) -> JSON:
        """See `Shape.choice`."""
        if self._echoed is None:
            return self._part(piece)
        prompt = self._echoed[place]
        scored = self._scored(prompt, response) if self._with_scores else []
        return self._part(Piece(prompt.text + piece.text, scored + self._moved(piece, place).tokens))

    def opening(self, place: int) -> JSON | None:
        """See `Shape.opening`."""
        return None if self._echoed is None else self._part(Piece(self._echoed[place].text))

    def growth(self, place: int, piece: Piece) -> JSON:
        """See `Shape.growth`."""
        return self._part(self._moved(piece, place))

    def ending(self) -> JSON:
        """See `Shape.ending`."""
        return {"text": "", "logprobs": None}

    def _part(self, piece: Piece) -> JSON:
        scores = completion_scores(piece.tokens, self._tokenizer) if self._with_scores else None
        return {"text": piece.text, "logprobs": scores}

    def _moved(self, piece: Piece, place: int) -> Piece:
        """The piece behind the echoed prompt, if there is one."""
        before = 0 if self._echoed is None else len(self._echoed[place].text)
        return Piece(piece.text, [replace(token, offset=token.offset + before) for token in piece.tokens])

    def _scored(self, prompt: Prompt, response: SampleResponse) -> list[ScoredToken]:
        logprobs = response.prompt_logprobs or []
        topk = response.topk_prompt_logprobs or [[] for _ in logprobs]
        offsets = _offsets(prompt, self._tokenizer)
        return [
            ScoredToken(token=token, logprob=logprob, topk=None if logprob is None else row, offset=offset)
            for token, logprob, row, offset in zip(prompt.ids, logprobs, topk, offsets, strict=True)
        ]


def _offsets(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """Where in the prompt's text each of its tokens begins."""
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    offsets, length = list[int](), 0
    for token in prompt.ids:
        offsets.append(length)
        length += len(characters.decode(tokenizer.token_bytes(token)))
    # A token that the tokenizer puts before every text is not in the text that was sent.
    surplus = max(length - len(prompt.text), 0)
    return [max(offset - surplus, 0) for offset in offsets]
