"""HTML for notebooks: tokens, shaded by what matters about each.

A completion is shaded by logprob (the less likely, the stronger), a datum by its advantages, or
else by its weights. Without a tokenizer, tokens show as ids. The HTML needs no scripts and no style sheet.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tinkerlite.errors import InvalidRequest
from tinkerlite.types import Datum, ModelInput, SampledSequence, SampleResponse

MOST_TOKENS = 1000
"""Shown of one sequence; browsers slow down beyond some thousands of spans."""
MOST_SEQUENCES = 16
SURPRISE_NATS = 5.0
"""A token this unlikely gets the full shade."""

_RED, _GREEN = (214, 69, 65), (38, 166, 91)
_BOX = "font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.6"


class Decoder(Protocol):
    """What is asked of a tokenizer."""

    def decode(self, token_ids: list[int], /) -> str:
        """The text of some tokens."""
        ...


@dataclass(frozen=True)
class Page:
    """Something to look at: HTML in a notebook, text elsewhere."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def show(
    item: Datum | SampleResponse | SampledSequence | ModelInput, tokenizer: Decoder | None = None
) -> Page:
    """A datum, prompt, completion or sample response, token by token.

    Args:
        item: what to look at.
        tokenizer: turns ids into text; absent, ids are shown.
    """
    if isinstance(item, Datum):
        parts = [_datum(item, tokenizer)]
    elif isinstance(item, SampleResponse):
        parts = [_response_heading(item)]
        parts += [
            _sequence(each, tokenizer, f"[{i}] ") for i, each in enumerate(item.sequences[:MOST_SEQUENCES])
        ]
        if len(item.sequences) > MOST_SEQUENCES:
            parts.append(_heading(f"... and {len(item.sequences) - MOST_SEQUENCES} more"))
    elif isinstance(item, SampledSequence):
        parts = [_sequence(item, tokenizer)]
    elif isinstance(item, ModelInput):  # pyright: ignore[reportUnnecessaryIsInstance]
        parts = [_heading(repr(item)), _tokens(_ids(item), tokenizer, None, [])]
    else:
        raise InvalidRequest(
            f"show() takes a datum, prompt, completion or response, not {type(item).__name__}"
        )
    return Page("".join(parts), repr(item))


def _response_heading(response: SampleResponse) -> str:
    lengths = [len(sequence.tokens_np) for sequence in response.sequences]
    total = f"{len(lengths)} completion{'s' * (len(lengths) != 1)}, {sum(lengths)} tokens"
    if response.prompt_logprobs_np is None:
        return _heading(total)
    scored = response.prompt_logprobs_np[~np.isnan(response.prompt_logprobs_np)]
    mean = f", mean logprob {scored.mean():.3f}" if scored.size else ""
    return _heading(f"{total}; prompt of {len(response.prompt_logprobs_np)} tokens{mean}")


def _sequence(sequence: SampledSequence, tokenizer: Decoder | None, label: str = "") -> str:
    logprobs = sequence.logprobs_np
    heading = f"{label}{len(sequence.tokens_np)} tokens, {sequence.stop_reason}"
    if logprobs is None:
        return _heading(heading) + _tokens(sequence.tokens, tokenizer, None, [])
    heading += f", mean logprob {logprobs.mean():.3f}" if logprobs.size else ""
    shades = np.maximum(logprobs / SURPRISE_NATS, -1.0)
    return _heading(heading) + _tokens(sequence.tokens, tokenizer, shades, [("logprob", logprobs)])


def _datum(datum: Datum, tokenizer: Decoder | None) -> str:
    """The targets, since it is they that are scored; shaded by advantages, or by weights."""
    inputs = datum.loss_fn_inputs
    ids = inputs.get("target_tokens")
    if ids is None or len(ids.shape) != 1:
        return _heading(repr(datum)) + _tokens(_ids(datum.model_input), tokenizer, None, [])
    length = ids.shape[0]
    values = [
        (name, tensor.to_numpy())
        for name, tensor in inputs.items()
        if name != "target_tokens" and tensor.shape == [length]
    ]
    shading = next(
        (array for key in ("advantages", "weights") for name, array in values if name == key), None
    )
    return _heading(repr(datum)) + _tokens(ids.data, tokenizer, _scaled(shading), values)


def _scaled(values: np.ndarray | None) -> np.ndarray | None:
    """Into -1..1, by the largest in size; what is not finite is left blank."""
    if values is None or values.size == 0:
        return None
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.abs(finite).max()
    return finite / largest if largest > 0 else finite


def _ids(model_input: ModelInput) -> list[int]:
    """The text of an input; images have no ids."""
    return [token for chunk in model_input.chunks if chunk.type == "encoded_text" for token in chunk.tokens]


def _tokens(
    ids: Sequence[int],
    tokenizer: Decoder | None,
    shades: np.ndarray | None,
    values: Sequence[tuple[str, np.ndarray]],
) -> str:
    spans: list[str] = []
    for position, token in enumerate(ids[:MOST_TOKENS]):
        notes = [f"token {token}", *(f"{name} {array[position]:.4g}" for name, array in values)]
        style = "" if shades is None else _background(float(shades[position]))
        title = html.escape(f"position {position}: {', '.join(notes)}", quote=True)
        spans.append(f'<span title="{title}"{style}>{_text(token, tokenizer)}</span>')
    rest = f" ... and {len(ids) - MOST_TOKENS} more" if len(ids) > MOST_TOKENS else ""
    return f'<div style="{_BOX}">{("" if tokenizer else " ").join(spans)}{rest}</div>'


def _text(token: int, tokenizer: Decoder | None) -> str:
    if tokenizer is None:
        return str(token)
    text = tokenizer.decode([int(token)])
    # A line break shows as one and is also made, so that a shade can be seen on it.
    return html.escape(text).replace("\n", "⏎\n")


def _background(shade: float) -> str:
    """Red below zero and green above, stronger with size; see-through, to suit light and dark."""
    if shade == 0 or not np.isfinite(shade):
        return ""
    red, green, blue = _RED if shade < 0 else _GREEN
    return f' style="background:rgba({red},{green},{blue},{0.65 * min(abs(shade), 1.0):.2f})"'


def _heading(text: str) -> str:
    return f'<div style="opacity:.7;font-size:85%;margin-top:.4em">{html.escape(text)}</div>'
