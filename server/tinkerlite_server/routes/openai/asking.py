"""What a completion is asked with, checked by name and turned into the server's own question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict

from tinkerlite.types import ModelInput, SamplingParams
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.routes.exchange import Body, parse
from tinkerlite_server.sample_validation import MOST_STOPS, SampleQuestion
from tinkerlite_server.settings import Limits


class StreamOptions(Body):
    """How a stream is to be sent."""

    include_usage: bool = False


class Asked(Body):
    """What both kinds of completion take. Fields that are not here are refused if they ask for something."""

    model_config = ConfigDict(extra="allow")

    model: str
    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def count(self) -> int:
        """Completions of each prompt."""
        return 1 if self.n is None else self.n


PASSING = {
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "service_tier",
}
"""These change nothing of what is sampled, whatever they say."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""What a parameter that is not supported may say. Any other may be null, false, 0 or empty."""


def check_supported(given: Mapping[str, Any] | None, prefix: str = "") -> None:
    """Check the fields that no class here has.

    Raises:
        BadRequest: naming the one that asks for something.
    """
    for name, value in (given or {}).items():
        neutral = NEUTRAL.get(name, (False, 0, "", [], {}))
        if value is not None and name not in PASSING and value not in neutral:
            raise BadRequest(
                f"{prefix}{name} is not supported by this server; leave it out", field=f"{prefix}{name}"
            )


def check_asked(asked: Asked, prompts: int, limits: Limits) -> None:
    """Check what does not depend on the model.

    Raises:
        BadRequest: naming the field that is wrong.
    """
    check_supported({name: value for name, value in (asked.model_extra or {}).items() if name != "best_of"})
    best_of = (asked.model_extra or {}).get("best_of")
    if best_of is not None and best_of != asked.count:
        raise BadRequest(f"best_of is {best_of} and n is {asked.count}; ask for n alone", field="best_of")
    if asked.stream_options is not None and not asked.stream:
        raise BadRequest("stream_options needs stream: true", field="stream_options")
    if not 1 <= asked.count * prompts <= limits.max_samples:
        of = "n is" if prompts == 1 else f"{prompts} prompts with n ="
        raise BadRequest(
            f"{of} {asked.count}; one request may ask for 1 to {limits.max_samples} completions", field="n"
        )
    stops = _stops(asked.stop)
    if len(stops) > MOST_STOPS or "" in stops:
        raise BadRequest(f"stop must be 1 to {MOST_STOPS} strings that are not empty", field="stop")


def questions(
    asked: Asked,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int | None,
    topk: int,
    prompt_logprobs: bool = False,
) -> list[SampleQuestion]:
    """One a prompt, for the checks that `asample` goes through too.

    Args:
        topk: alternatives a sampled position, and with `prompt_logprobs` a prompt position.

    Raises:
        BadRequest: naming the parameter that is out of range.
    """
    given = {
        "max_tokens": max_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "seed": asked.seed,
        "stop": _stops(asked.stop) or None,
    }
    params = parse(SamplingParams, {name: value for name, value in given.items() if value is not None})
    return [
        SampleQuestion(
            prompt=ModelInput.from_ints(prompt),
            params=params,
            num_samples=asked.count,
            prompt_logprobs=prompt_logprobs,
            topk_prompt_logprobs=topk if prompt_logprobs else 0,
            topk_sample_logprobs=topk,
            stream=bool(asked.stream),
        )
        for prompt in prompts
    ]


def check_topk(name: str, k: int, limits: Limits) -> int:
    """The number of alternatives asked for.

    Raises:
        BadRequest: it is negative, or too many.
    """
    if not 0 <= k <= limits.max_topk:
        raise BadRequest(f"{name} is {k}; it must be 0 to {limits.max_topk}", field=name)
    return k


def _stops(stop: str | list[str] | None) -> list[str]:
    """Unlike in `asample`, an empty list leaves the model's end of text as a stop."""
    return [stop] if isinstance(stop, str) else stop or []
