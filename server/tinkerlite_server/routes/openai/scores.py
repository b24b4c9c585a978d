"""Scores: logprobs in the two shapes that the two kinds of completion have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinkerlite_server.engine.protocols import Tokenizer
from tinkerlite_server.routes.openai.transcript import ScoredToken

_LEAST = -9999.0
"""What stands for a probability of zero, which JSON has no number for."""


def chat_scores(tokens: Sequence[ScoredToken], tokenizer: Tokenizer) -> dict[str, Any]:
    """Of a chat completion: one entry a token, with its alternatives."""
    return {
        "content": [
            {
                **_entry(scored.token, scored.logprob, tokenizer),
                "top_logprobs": [_entry(token, logprob, tokenizer) for token, logprob in scored.topk or []],
            }
            for scored in tokens
        ],
        "refusal": None,
    }


def _entry(token: int, logprob: float | None, tokenizer: Tokenizer) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    return {"token": _spelled(data), "logprob": _finite(logprob), "bytes": list(data)}


def completion_scores(tokens: Sequence[ScoredToken], tokenizer: Tokenizer) -> dict[str, Any]:
    """Of a completion: parallel lists. Alternatives include the token itself, likely or not."""
    return {
        "tokens": [_named(scored.token, tokenizer) for scored in tokens],
        "token_logprobs": [_finite(scored.logprob) for scored in tokens],
        "top_logprobs": [_alternatives(scored, tokenizer) for scored in tokens],
        "text_offset": [scored.offset for scored in tokens],
    }


def _alternatives(scored: ScoredToken, tokenizer: Tokenizer) -> dict[str, float | None] | None:
    if scored.topk is None or scored.logprob is None:
        return None
    # From the least likely on: of tokens with one name, the likeliest stands.
    alike = {_named(token, tokenizer): _finite(logprob) for token, logprob in reversed(scored.topk)}
    return dict(reversed(alike.items())) | {_named(scored.token, tokenizer): _finite(scored.logprob)}


def _named(token: int, tokenizer: Tokenizer) -> str:
    return _spelled(tokenizer.token_bytes(token), "bytes:")


def _spelled(data: bytes, prefix: str = "") -> str:
    """The bytes as text; where they are none, in hexadecimal."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LEAST)
