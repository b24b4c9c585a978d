"""Sampling: the form in which results come, whether a seed repeats, and whose logprobs come with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinkerlite.connection import Connection
from tinkerlite.doctor.findings import Finding, apart, as_array, judge, precision
from tinkerlite.errors import APIResponseValidationError
from tinkerlite.json_form import sample_from_json
from tinkerlite.polling import ResultType
from tinkerlite.sampling_client import SamplingClient
from tinkerlite.types import ModelInput, SampledSequence, SampleResponse, SamplingParams
from tinkerlite.wire import decode_sample_response

LEAD_IN = (40, 41, 42, 43, 44, 45, 46, 47)
"""Ids that every vocabulary has; what the model makes of them is text of its own kind."""
OWN_TOKENS = 40
SAMPLES = 4


def own_text(sampler: SamplingClient) -> list[int]:
    """A text to examine, as ids, without a tokenizer: a lead-in, and the model's own words after it."""
    params = SamplingParams(max_tokens=OWN_TOKENS, seed=0)
    drawn = sampler.sample(ModelInput.from_ints(LEAD_IN), SAMPLES, params).result()
    # Without the token that ended it, so that there is something to go on with.
    words = [each.tokens[:-1] if each.stop_reason == "stop" else each.tokens for each in drawn.sequences]
    return [*LEAD_IN, *max(words, key=len)]


def only(response: SampleResponse) -> SampledSequence:
    """The completion of a request for one.

    Raises:
        APIResponseValidationError: there are none, or several.
    """
    if len(response.sequences) != 1:
        raise APIResponseValidationError(
            message=f"{len(response.sequences)} completions came back, not the one asked for"
        )
    return response.sequences[0]


def dialect(connection: Connection, sampler: SamplingClient) -> Finding:
    """The form of the results. `sampler` must be used for nothing else: this takes its first number."""
    forms: list[str] = []

    def from_json(body: dict[str, Any]) -> SampleResponse:
        forms.append("JSON")
        return sample_from_json(body)

    def from_protobuf(content: bytes) -> SampleResponse:
        forms.append("protobuf")
        return decode_sample_response(content)

    async def ask() -> bool:
        body = {
            "type": "sample",
            "sampling_session_id": sampler.sampling_session_id,
            "seq_id": 0,
            "num_samples": 1,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": list(LEAD_IN)}]},
            "sampling_params": {"max_tokens": 1},
        }
        receipt = await connection.submit("asample", json=body)
        await connection.result(receipt, ResultType("sample", from_json, from_protobuf))
        return bool(receipt.sample_sequence_ids)

    names_samples = connection.wait(ask())
    [form] = forms
    missing = [
        *(["reads protobuf alone (from 0.25 on)"] if form == "JSON" else []),
        *([] if names_samples else ["needs sample_sequence_ids (0.38)"]),
    ]
    return Finding(
        check="dialect",
        outcome="warn" if missing else "pass",
        says=f"results of sampling come in {form}, "
        + ("and the samples have ids" if names_samples else "and the samples have no ids"),
        advice=f"this client reads them; the official SDK {' and '.join(missing)}" if missing else "",
        measured={"form": form, "sample_sequence_ids": names_samples},
    )


def seeds(sampler: SamplingClient, text: list[int]) -> Finding:
    """One seed draws the same again, and yet not one completion several times over."""
    prompt = ModelInput.from_ints(text)

    def draw(seed: int | None) -> list[tuple[int, ...]]:
        params = SamplingParams(max_tokens=16, seed=seed)
        return [tuple(each.tokens) for each in sampler.sample(prompt, SAMPLES, params).result().sequences]

    once, again, free = draw(7), draw(7), draw(None)
    if len(once) != SAMPLES:
        says = f"{len(once)} completions came back where {SAMPLES} were asked for"
        return Finding(check="seed", outcome="fail", says=says, advice="send one request for each sample")
    repeats, distinct = once == again, len(set(once))
    measured = {"repeats": repeats, "distinct_samples": distinct, "distinct_without_a_seed": len(set(free))}
    if distinct == 1 and len(set(free)) > 1:
        return Finding(
            check="seed",
            outcome="fail",
            says=f"the {SAMPLES} samples of one request are copies of each other when it has a seed",
            advice="send no seed, or one request with a seed of its own for each sample",
            measured=measured,
        )
    if not repeats:
        return Finding(
            check="seed",
            outcome="warn",
            says="a request that is repeated with its seed draws other tokens",
            advice="runs on this server cannot be repeated exactly; average over several",
            measured=measured,
        )
    says = f"a seed draws the same tokens again ({SAMPLES} samples, {distinct} different)"
    return Finding(check="seed", outcome="pass", says=says, measured=measured)


def temperature(sampler: SamplingClient, text: list[int], dtype: str | None) -> Finding:
    """Sampled logprobs at another temperature are still those of scoring, at temperature 1."""
    params = SamplingParams(max_tokens=16, temperature=0.5, seed=3)
    sequence = only(sampler.sample(ModelInput.from_ints(text), 1, params).result())
    if sequence.logprobs_np is None:
        return Finding(
            check="sampled logprobs",
            outcome="fail",
            says="completions come without logprobs",
            advice="importance sampling needs them; score the completions with compute_logprobs instead",
        )
    whole = ModelInput.from_ints([*text, *sequence.tokens])
    scored = as_array(sampler.compute_logprobs(whole).result())[len(text) :]
    mean, largest = apart(sequence.logprobs_np, scored)
    outcome = judge(mean, dtype)
    return Finding(
        check="sampled logprobs",
        outcome=outcome,
        says=f"sampling at temperature 0.5 and scoring the same tokens differ by {mean:.2g} nats on average, "
        f"{largest:.2g} at most ({precision(dtype)})",
        advice=""
        if outcome == "pass"
        else "sampled logprobs may be tempered here: sample at temperature 1, or score the completions again",
        measured={"mean": mean, "max": largest, "tokens": int(np.size(scored))},
    )
