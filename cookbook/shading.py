"""Shaded answers: every token of a completion with what a teacher thinks of it, for terminal and page.

The penalty of a token is log p_student - log p_teacher, in nats: what on-policy distillation would push it
down by. A token *diverges* if the teacher would rather have written another one. Knows nothing about
where completions come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypedDict

from rich.text import Text

from cookbook.renderers import Renderer
from cookbook.report import KL_SHOWN, shaded_tokens
from cookbook.rollouts import Trajectory
from tinkerlite import CapabilityError, SamplingClient
from tinkerlite.types import ModelInput, SamplingParams

_OBJECTS, _AGREES, _PAPER = (214, 55, 55), (32, 140, 110), (24, 24, 24)


LEGEND = 'the teacher likes it more<span class="legend"></span>the teacher would not say this'


class ShadedToken(TypedDict):
    """One token of a completion; logprobs in nats."""

    text: str
    student: float
    teacher: float
    choice: str
    """What the teacher finds likeliest in its place; the token itself where it agrees."""


def penalty(token: Mapping[str, Any]) -> float:
    """log p_student - log p_teacher: positive where the teacher objects."""
    return token["student"] - token["teacher"]


def diverges(token: Mapping[str, Any]) -> bool:
    """Whether the teacher would rather have written something else."""
    return token["choice"] != token["text"]


def shade(
    trajectories: Sequence[Trajectory], teacher: SamplingClient, renderer: Renderer
) -> list[list[ShadedToken]]:
    """What a teacher thinks of each token; all completions are scored at once.

    Args:
        trajectories: what a student sampled, prompts included.
        teacher: reads the same prompts.
        renderer: writes tokens out.

    Raises:
        CapabilityError: the backend does not score the tokens of a prompt, or not the likeliest ones.
    """
    one_token = SamplingParams(max_tokens=1)
    pending = [
        teacher.sample(
            ModelInput.from_ints([*t.prompt_tokens, *t.completion_tokens]),
            num_samples=1,
            sampling_params=one_token,
            include_prompt_logprobs=True,
            topk_prompt_logprobs=1,
        )
        for t in trajectories
    ]
    shaded: list[list[ShadedToken]] = []
    for trajectory, answer in zip(trajectories, pending, strict=True):
        response = answer.result()
        given = len(trajectory.prompt_tokens)
        logprobs, likeliest = response.prompt_logprobs, response.topk_prompt_logprobs
        if logprobs is None or likeliest is None:
            raise CapabilityError("the teacher's backend does not score the tokens of a prompt")
        tokens: list[ShadedToken] = []
        texts = renderer.token_texts(trajectory.completion_tokens)
        for text, token, student, teachers, top in zip(
            texts,
            trajectory.completion_tokens,
            trajectory.logprobs,
            logprobs[given:],
            likeliest[given:],
            strict=True,
        ):
            if teachers is None or not top:
                raise CapabilityError("the teacher's backend returned no logprob for a completion token")
            choice = text if top[0][0] == token else renderer.token_texts([top[0][0]])[0]
            tokens.append(
                ShadedToken(text=text, student=float(student), teacher=float(teachers), choice=choice)
            )
        shaded.append(tokens)
    return shaded


def terminal_text(tokens: Sequence[Mapping[str, Any]]) -> Text:
    """Running text: the redder, the more the teacher objects; green where it likes a token better."""
    text = Text()
    for token in tokens:
        shown = token["text"].replace("\n", "⏎\n")
        text.append(shown, style=_style(penalty(token)))
    return text


def page(title: str, introduction: str, answers: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> str:
    """A self-contained page of answers, each under its heading; hover over a token for its numbers."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    cards = "\n".join(
        f'<div class="card"><h3>{escape(heading)}</h3><div class="tokens">{shaded_tokens(tokens)}</div></div>'
        for heading, tokens in answers
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{style}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{escape(introduction)}</p>",
            f'<p class="soft">{LEGEND}</p>',
            cards,
            "</body></html>",
            "",
        ]
    )


def _style(nats: float) -> str:
    strength = min(abs(nats) / KL_SHOWN, 1.0)
    if strength < 0.01:
        return ""
    tint = _OBJECTS if nats > 0 else _AGREES
    red, green, blue = (round(p + strength * (t - p)) for p, t in zip(_PAPER, tint, strict=True))
    return f"white on rgb({red},{green},{blue})"
