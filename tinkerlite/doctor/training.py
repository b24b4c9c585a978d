"""Training: how far the sampler's logprobs are from the trainer's, on a small run that is then let go."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinkerlite.connection import Connection
from tinkerlite.doctor.findings import (
    TROUBLE,
    Finding,
    Outcome,
    apart,
    as_array,
    attempt,
    is_not_offered,
    judge,
    precision,
)
from tinkerlite.doctor.sampling import only
from tinkerlite.polling import ResultType
from tinkerlite.sampling_client import SamplingClient
from tinkerlite.service_client import ServiceClient
from tinkerlite.training_client import TrainingClient
from tinkerlite.types import AdamParams, Datum, ModelInput, SamplingParams

RANK = 8
STEP = AdamParams(learning_rate=1e-4)
FRESH, AFTER = "sampler and trainer, fresh", "sampler and trainer, after a step"

_UNLOAD: ResultType[dict[str, Any]] = ResultType("unload_model", lambda body: body)


@dataclass(frozen=True)
class Readings:
    """One text and a completion of it, as the trainer and a sampler of its weights see them."""

    scored: NDArray[np.float32]
    """(P-1,) by the sampler, of the text's tokens but the first."""
    trained: NDArray[np.float32]
    """(P-1,) of the same tokens, by the trainer."""
    sampled: NDArray[np.float32]
    """(T,) logprobs that came with the completion."""
    sampled_trained: NDArray[np.float32]
    """(T,) the trainer's of the same tokens."""

    def apart(self) -> tuple[float, float]:
        """Mean and largest |difference|, over the text and its completion."""
        sampler, trainer = (self.scored, self.sampled), (self.trained, self.sampled_trained)
        return apart(np.concatenate(sampler), np.concatenate(trainer))


def training(
    service: ServiceClient, base: SamplingClient, student: str, text: list[int], dtype: str | None
) -> Generator[Finding]:
    """Findings on a fresh LoRA run, on the same after one step, and on letting it go."""
    made: list[TrainingClient] = []
    readings: list[Readings] = []

    def fresh() -> Finding:
        made.append(service.create_lora_training_client(student, rank=RANK, seed=0))
        readings.append(_read(made[0], text))
        return fresh_finding(
            readings[0], as_array(base.compute_logprobs(ModelInput.from_ints(text)).result()), dtype
        )

    def after() -> Finding:
        gradients = made[0].forward_backward([_datum(text)], "cross_entropy")
        made[0].optim_step(STEP).result()
        gradients.result()
        readings.append(_read(made[0], text))
        return after_finding(readings[0], readings[1], dtype)

    yield attempt(FRESH, fresh)
    if readings:
        yield attempt(AFTER, after)
    if made:
        yield _let_go(service.connection, made[0])


def _datum(tokens: list[int]) -> Datum:
    inputs = {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)}
    return Datum(ModelInput.from_ints(tokens[:-1]), inputs)  # pyright: ignore[reportArgumentType]


def _read(trainer: TrainingClient, text: list[int]) -> Readings:
    sampler = trainer.save_weights_and_get_sampling_client()
    params = SamplingParams(max_tokens=16, seed=1)
    completion = only(sampler.sample(ModelInput.from_ints(text), 1, params).result())
    scored = as_array(sampler.compute_logprobs(ModelInput.from_ints(text)).result())
    output = trainer.forward([_datum([*text, *completion.tokens])], "cross_entropy").result()
    trained = output.loss_fn_outputs[0]["logprobs"].to_numpy().astype(np.float32)
    given = len(text) - 1
    sampled = completion.logprobs_np
    return Readings(
        scored=scored[1:],
        trained=trained[:given],
        # Without them there is nothing to compare, which `apart` says with a NaN.
        sampled=np.full(len(completion.tokens), np.nan, np.float32) if sampled is None else sampled,
        sampled_trained=trained[given:],
    )


def fresh_finding(now: Readings, base: NDArray[np.float32], dtype: str | None) -> Finding:
    """A fresh adapter: do sampler and trainer agree, and with the base model's logprobs of the text, (P,)?"""
    mean, largest = now.apart()
    from_base, from_base_largest = apart(now.scored, base[1:])
    outcome = max((judge(mean, dtype), judge(from_base, dtype)), key=_severity)
    advice = "importance ratios start off 1 here: correct for it, or recompute the logprobs with forward()"
    if judge(from_base, dtype) != "pass":
        advice = "a fresh adapter should change nothing: the server may not begin at the base weights"
    return Finding(
        check=FRESH,
        outcome=outcome,
        says=f"on a fresh LoRA run (rank {RANK}) they differ by {mean:.2g} nats on average, {largest:.2g} at "
        f"most, and from the base model by {from_base:.2g} ({precision(dtype)})",
        advice="" if outcome == "pass" else advice,
        measured={
            "mean": mean,
            "max": largest,
            "mean_from_base": from_base,
            "max_from_base": from_base_largest,
            "tokens": len(now.scored) + len(now.sampled),
        },
    )


def after_finding(before: Readings, now: Readings, dtype: str | None) -> Finding:
    """Before and after a step: do sampler and trainer agree, and did both move?"""
    mean, largest = now.apart()
    trainer_moved, _ = apart(now.trained, before.trained)
    sampler_moved, _ = apart(now.scored, before.scored)
    measured = {
        "mean": mean,
        "max": largest,
        "trainer_moved": trainer_moved,
        "sampler_moved": sampler_moved,
    }
    outcome = judge(mean, dtype)
    says = f"after one step, which moved the trainer's logprobs by {trainer_moved:.2g} nats on average"
    advice = "what the sampler draws is not what the trainer believes: recompute the logprobs with forward()"
    if trainer_moved == 0:
        return Finding(
            check=AFTER,
            outcome="fail",
            says="a step with learning rate 1e-4 changed nothing at all",
            advice="forward_backward or optim_step has no effect on this server",
            measured=measured,
        )
    if sampler_moved < trainer_moved / 10:
        outcome, advice = "fail", "the sampler still has weights from before the step"
    return Finding(
        check=AFTER,
        outcome=outcome,
        says=f"{says}, they differ by {mean:.2g} on average, {largest:.2g} at most ({precision(dtype)})",
        advice="" if outcome == "pass" else advice,
        measured=measured,
    )


def _severity(outcome: Outcome) -> int:
    return ("skip", "pass", "warn", "fail").index(outcome)


def _let_go(connection: Connection, trainer: TrainingClient) -> Finding:
    """Unload the run. Nothing else is to be tidied: its snapshots had no names, and nothing was saved."""

    async def unload() -> None:
        body = {"type": "unload_model", "model_id": trainer.model_id}
        receipt = await connection.submit("unload_model", json=body)
        await connection.result(receipt, _UNLOAD)

    measured = {"model_id": trainer.model_id}
    try:
        connection.wait(unload())
    except TROUBLE as error:
        unknown = is_not_offered(error)
        reason = "the server has no unload_model" if unknown else f"the run was not unloaded: {error}"
        says = f"{reason}; it ends with this session"
        return Finding(check="tidied up", outcome="pass" if unknown else "warn", says=says, measured=measured)
    says = "the run is unloaded, and no checkpoint was saved (`run list` keeps a record)"
    return Finding(check="tidied up", outcome="pass", says=says, measured=measured)
