"""Tokens and their logprobs in a terminal: shaded by surprise, or one a line where there is no colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from tinkerlite.cli.output import plain_console
from tinkerlite.cli.text import visible
from tinkerlite.notebook import SURPRISE_NATS

_RED = (214, 69, 65)
_PAPER = (24, 24, 24)


@dataclass(frozen=True)
class ScoredToken:
    """A token, its text, and its logprob in nats; None where it has none (the first of a text)."""

    id: int
    text: str
    logprob: float | None


@dataclass(frozen=True)
class Summary:
    """Of the tokens that have a logprob: how many, their sum and mean in nats, and the perplexity."""

    tokens: int
    sum: float
    mean: float
    perplexity: float

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens scored: sum {self.sum:.4f}, mean {self.mean:.4f} nats, "
            f"perplexity {self.perplexity:.4g}"
        )


def summary(tokens: Sequence[ScoredToken]) -> Summary | None:
    """None if no token has a logprob."""
    logprobs = [token.logprob for token in tokens if token.logprob is not None]
    if not logprobs:
        return None
    total = math.fsum(logprobs)
    mean = total / len(logprobs)
    # Beyond the exponent's range there is no number to print.
    return Summary(len(logprobs), total, mean, math.exp(-mean) if mean > -700 else math.inf)


def print_tokens(tokens: Sequence[ScoredToken]) -> None:
    """Shaded running text in a terminal with colours; elsewhere position, logprob and token, one a line."""
    console = plain_console()
    if console.is_terminal and console.color_system is not None:
        console.print(shaded(tokens), soft_wrap=True)
        return
    for position, token in enumerate(tokens):
        logprob = "-" if token.logprob is None else f"{token.logprob:.4f}"
        print(f"{position:5d} {logprob:>10s}  {token.text!r}")


def shaded(tokens: Sequence[ScoredToken]) -> Text:
    """Running text; the redder, the less likely."""
    text = Text()
    for token in tokens:
        # A line break shows as one and is also made, so that a shade can be seen on it.
        text.append(visible(token.text).replace("\n", "⏎\n"), style=_style(token.logprob))
    return text


def _style(logprob: float | None) -> str:
    if logprob is None or logprob == 0 or math.isnan(logprob):
        return ""
    strength = min(-logprob / SURPRISE_NATS, 1.0)
    red, green, blue = (round(p + strength * (r - p)) for r, p in zip(_RED, _PAPER, strict=True))
    return f"white on rgb({red},{green},{blue})" if strength > 0 else ""
