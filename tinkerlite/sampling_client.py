"""SamplingClient: one set of weights to sample from, and to score with.

Requests have no order between them; the server batches them as they come.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinkerlite import handles
from tinkerlite.compat import Ready, offloaded, resolved
from tinkerlite.connection import Connection
from tinkerlite.errors import (
    BadRequestError,
    InvalidRequest,
    NotFoundError,
    RateLimitError,
    ResultGoneError,
    UnprocessableEntityError,
)
from tinkerlite.future import APIFuture
from tinkerlite.json_form import prompt_to_json, tensor_to_json
from tinkerlite.losses import check_prompt
from tinkerlite.progress import Gate, ProgressClock
from tinkerlite.results import sample_result
from tinkerlite.retry import MIN_BACKOFF_SECONDS, jittered
from tinkerlite.sample_questions import (
    as_asked,
    check_count,
    check_last_n,
    check_offered,
    check_targets,
    goes_beyond_scoring,
)
from tinkerlite.session import Session
from tinkerlite.tokenizers import Tokenizer, load_tokenizer
from tinkerlite.types import (
    CreateSamplingSessionResponse,
    GetSamplerResponse,
    ModelInput,
    SampleResponse,
    SamplingParams,
    TensorData,
    UntypedAPIFuture,
)

PAUSE_SECONDS, LONG_PROMPT_PAUSE_SECONDS = 1.0, 5.0
"""How long a sampler keeps still after a 429 that does not say how long."""
LONG_PROMPT = 2**15
"""Tokens from which on a prompt counts as long."""

MAX_LOST_RESULTS = 3
"""How often a sample is asked for again because the server no longer has its result."""


@dataclass(frozen=True)
class SamplerSource:
    """What a sampler is called on its server, and what it samples from."""

    sampling_session_id: str
    base_model: str
    record_stability_info: bool = False


class SamplingClient(Ready):
    """A sampler: fixed weights, any number of requests side by side.

    Made by `ServiceClient.create_sampling_client`, or by a TrainingClient from its weights. It can be
    pickled, for other processes: each copy is a client of the same sampler, which lives as long as
    the session that made it.
    """

    def __init__(
        self, connection: Connection, source: SamplerSource, session: Session | None = None, first: int = 0
    ) -> None:
        self._session = session  # kept, since its heartbeats keep the sampler alive
        self._connection = connection
        self._source = source
        self.sampling_session_id = source.sampling_session_id
        self._base_model = source.base_model
        self._numbers = itertools.count(first)
        self._clock = ProgressClock()
        self._gate = Gate()
        limit = self._connection.server_config.sample_max_concurrent_requests
        self._slots = asyncio.Semaphore(min(limit, self._connection.config.max_concurrent_samples))

    @classmethod
    async def create(
        cls, session: Session, model_path: str | None, base_model: str | None, record_stability_info: bool
    ) -> SamplingClient:
        """A sampler on saved weights, on a base model, or on saved weights over a named base.

        Raises:
            InvalidRequest: neither was named.
            NotFoundError: the server has no such weights.
        """
        if model_path is None and base_model is None:
            raise InvalidRequest("create_sampling_client needs a model_path or a base_model")
        sampler_id, base_model = await _create(session, model_path, base_model)
        source = SamplerSource(sampler_id, base_model, record_stability_info)
        return cls(session.connection, source, session)

    def get_sampler_handle(self) -> str:
        """The sampler as text, for another process's `from_sampler_handle`; holds no key.

        Raises:
            CapabilityError: the server lives in this process.
        """
        return handles.write(self._connection, self._source)

    @staticmethod
    def from_sampler_handle(handle: str, *, api_key: str | None = None) -> SamplingClient:
        """A client of the sampler behind a handle. The key is found as a ServiceClient finds it.

        Raises:
            InvalidRequest: it is no handle.
        """
        connection, source = handles.read(handle, api_key)
        return SamplingClient(connection, SamplerSource(**source), first=handles.first_number())

    def __reduce__(self) -> tuple[Callable[[str, str], SamplingClient], tuple[str, str]]:
        return _unpickle, (self.get_sampler_handle(), self._connection.endpoint.api_key)

    def sample(
        self,
        prompt: ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: TensorData | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> APIFuture[SampleResponse]:
        """Draw completions of one prompt. Logprobs are of temperature 1 whatever the temperature.

        Args:
            prompt: P tokens, at least one.
            num_samples: how many completions; with a seed, each still has a stream of its own.
            sampling_params: length, temperature, stops, seed.
            include_prompt_logprobs: also score the prompt: P logprobs, None for the first token.
            topk_prompt_logprobs: also return the k likeliest tokens at each prompt position.
            topk_sample_logprobs: the same at each sampled position.
            target_prompt_logprobs: int64 (P-1, K), dense or CSR: cell [i, j] is a token to score at
                prompt position i + 1; -1 asks for nothing. Answered in the same layout, 0 there.
            prompt_alt_tokens_k: draw this many tokens at each prompt position after the first,
                independently and at the request's temperature; answered as two (P-1, k) tensors.
            prompt_logprobs_last_n: score (and rank) only the last n tokens of the prompt.

        Raises:
            InvalidRequest, InvalidInput: at once; nothing was sent.
            CapabilityError: from the future, when the server does not offer what was asked for.
        """
        length = check_prompt(prompt)
        if num_samples < 1:
            raise InvalidRequest(f"num_samples is {num_samples}; it must be at least 1")
        check_count("topk_prompt_logprobs", topk_prompt_logprobs)
        check_count("topk_sample_logprobs", topk_sample_logprobs)
        check_count("prompt_alt_tokens_k", prompt_alt_tokens_k)
        body: dict[str, Any] = {
            "type": "sample",
            "sampling_session_id": self.sampling_session_id,
            "num_samples": num_samples,
            "prompt": prompt_to_json(prompt),
            "sampling_params": _params_to_json(sampling_params),
        }
        # What is not asked for is not mentioned: some servers refuse fields that they do not know.
        extras = {
            "prompt_logprobs": include_prompt_logprobs,
            "topk_prompt_logprobs": topk_prompt_logprobs,
            "topk_sample_logprobs": topk_sample_logprobs,
            "prompt_alt_tokens_k": prompt_alt_tokens_k,
        }
        body |= {name: asked for name, asked in extras.items() if asked}
        if target_prompt_logprobs is not None:
            check_targets(target_prompt_logprobs, length)
            body["target_prompt_logprobs"] = tensor_to_json(target_prompt_logprobs)
        if prompt_logprobs_last_n is not None:
            check_last_n(prompt_logprobs_last_n, length, include_prompt_logprobs)
            body["prompt_logprobs_last_n"] = prompt_logprobs_last_n
        return self._connection.start(self._sample("sample", body), "sample")

    def compute_logprobs(
        self, prompt: ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> APIFuture[list[float | None]]:
        """log p of each token of the prompt given those before it: P numbers, in nats.

        None where there is none: at the first token, and before the last n if n is given.
        """
        length = check_prompt(prompt)
        body: dict[str, Any] = {
            "type": "sample",
            "sampling_session_id": self.sampling_session_id,
            "num_samples": 1,
            "prompt": prompt_to_json(prompt),
            "sampling_params": SamplingParams(max_tokens=1).model_dump(exclude_none=True),
            "prompt_logprobs": True,
        }
        if prompt_logprobs_last_n is not None:
            check_last_n(prompt_logprobs_last_n, length, prompt_logprobs=True)
            body["prompt_logprobs_last_n"] = prompt_logprobs_last_n
        return self._connection.start(self._compute_logprobs(body), "compute_logprobs")

    async def _compute_logprobs(self, body: dict[str, Any]) -> list[float | None]:
        response = await self._sample("compute_logprobs", body)
        assert response.prompt_logprobs is not None, "as_asked has checked it"
        return response.prompt_logprobs

    async def _sample(self, name: str, body: dict[str, Any]) -> SampleResponse:
        async with self._slots:
            if goes_beyond_scoring(body):
                check_offered(body, await self._connection.capabilities.of(self._base_model))
            for lost in range(MAX_LOST_RESULTS + 1):
                numbered = {**body, "seq_id": next(self._numbers)}
                if self._source.record_stability_info:
                    numbered["record_stability_info"] = True
                receipt = await self._submit(numbered)
                result_type = sample_result(name, receipt.sample_sequence_ids)
                try:
                    response = await self._connection.result(receipt, result_type, self._clock)
                except (ResultGoneError, NotFoundError):
                    # Sampling changes nothing, so what the server let go of, or lost when it was restarted,
                    # can be asked for again, as a new request.
                    if lost == MAX_LOST_RESULTS:
                        raise
                else:
                    return as_asked(response, body)
        raise AssertionError("the last round returns or raises")

    async def _submit(self, body: dict[str, Any]) -> UntypedAPIFuture:
        """Hand in a sample. While the server takes no more, every request of this sampler waits."""
        refused: float | None = None
        while True:
            await self._gate.opened()
            try:
                return await self._connection.submit(
                    "asample",
                    json=body,
                    headers={"X-Tinker-Sampling-Backpressure": "1"},
                    busy_is_final=True,
                )
            except RateLimitError as error:
                now = time.monotonic()
                refused = now if refused is None else refused
                tokens = sum(len(chunk.get("tokens", ())) for chunk in body["prompt"]["chunks"])
                pause = error.retry_after_seconds
                if pause is None:
                    pause = LONG_PROMPT_PAUSE_SECONDS if tokens > LONG_PROMPT else PAUSE_SECONDS
                pause = jittered(max(pause, MIN_BACKOFF_SECONDS))
                idle = now - max(refused, self._clock.last)
                if idle + pause > self._connection.config.stuck_timeout_seconds:
                    error.add_note(f"No sample was taken or finished for {idle:.0f} s.")
                    raise
                self._gate.close_for(pause)

    def get_base_model(self) -> str:
        """The name of the base model."""
        return self._base_model

    def get_tokenizer(self) -> Tokenizer:
        """The base model's tokenizer.

        Raises:
            CapabilityError: transformers is not installed.
        """
        return load_tokenizer(self._connection, self._base_model)

    def __repr__(self) -> str:
        return f"<SamplingClient {self.sampling_session_id}: {self._base_model}>"

    # The `tinker` SDK's spellings; see compat.py.
    sample_async = resolved(sample)
    compute_logprobs_async = resolved(compute_logprobs)
    get_base_model_async = offloaded(get_base_model)


def _unpickle(handle: str, api_key: str) -> SamplingClient:
    return SamplingClient.from_sampler_handle(handle, api_key=api_key)


async def _create(session: Session, model_path: str | None, base_model: str | None) -> tuple[str, str]:
    """The new sampler's id, and the name of its base model."""
    number = session.next_sampler_number()
    try:
        sampler_id = await _create_session(session, number, model_path=model_path, base_model=base_model)
        if base_model is None:
            base_model = await _base_model_of(session.connection, sampler_id)
    except (BadRequestError, UnprocessableEntityError):
        if model_path is None or base_model is None:
            raise
        # Some servers take a path or a base model, and not both, even where they agree.
        sampler_id = await _create_session(session, number, model_path=model_path)
        if await _base_model_of(session.connection, sampler_id) != base_model:
            raise
    return sampler_id, base_model


async def _create_session(session: Session, number: int, **weights: str | None) -> str:
    body = {
        "type": "create_sampling_session",
        "session_id": session.id,
        "sampling_session_seq_id": number,
        **{name: value for name, value in weights.items() if value is not None},
    }
    created = await session.connection.ask(
        CreateSamplingSessionResponse, "POST", "create_sampling_session", json=body
    )
    return created.sampling_session_id


async def _base_model_of(connection: Connection, sampler_id: str) -> str:
    return (await connection.ask(GetSamplerResponse, "GET", f"samplers/{sampler_id}")).base_model


def _params_to_json(params: SamplingParams) -> dict[str, Any]:
    """The parameters that were given; a single stop string as a list, which every server takes."""
    body = params.model_dump(exclude_none=True)
    if isinstance(params.stop, str):
        body["stop"] = [params.stop]
    return body
