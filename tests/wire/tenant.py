"""One tenant: trains a run of its own, samples from it, and says what came out.

    python tenant.py URL KEY BASE_MODEL SEED STEPS SAMPLES

prints "run ID", then "step N" after each step, and last the results as a line of JSON. The work
follows from SEED alone, so equal arguments have equal results, whoever else is at work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import tinkerlite
from tinkerlite.types import AdamParams, Datum, ModelInput, SampledSequence, SamplingParams

LOWEST_ID, HIGHEST_ID = 10, 500
ADAM = AdamParams(learning_rate=1e-3, eps=1e-6)
"""Above the rounding error of a gradient: with an eps below it, an element whose gradient is nearly 0
steps as far as any other, in the direction of its error."""


def work(
    url: str,
    key: str,
    base_model: str,
    seed: int,
    steps: int,
    samples: int,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, list[Any]]:
    """The logprobs before each step, and the completions of the weights after the last."""
    rng = np.random.default_rng(seed)
    logprobs: list[float] = []
    config = tinkerlite.ClientConfig(heartbeat_seconds=0.5)
    with tinkerlite.ServiceClient(base_url=url, api_key=key, config=config) as service:
        training = service.create_lora_training_client(base_model, rank=4, seed=seed)
        say(f"run {training.model_id}")
        for step in range(steps):
            logprobs += update(training, lessons(rng))
            say(f"step {step + 1}")
        sampler = training.save_weights_and_get_sampling_client()
        drawn = sample(sampler, [prompt(rng) for _ in range(samples)], seed)
    return {
        "logprobs": logprobs,
        "tokens": [each.tokens for each in drawn],
        "sampled": [each.logprobs for each in drawn],
    }


def update(training: tinkerlite.TrainingClient, data: list[Datum]) -> list[float]:
    """A step, and the logprobs before it."""
    output = training.forward_backward(data, "importance_sampling")
    training.optim_step(ADAM).result()
    return [
        logprob
        for datum in output.result().loss_fn_outputs
        for logprob in datum["logprobs"].to_numpy().tolist()
    ]


def sample(
    sampler: tinkerlite.SamplingClient, prompts: Sequence[ModelInput], seed: int
) -> list[SampledSequence]:
    """A completion of each prompt; all are sent before one is waited for.

    Drawn among few tokens: a rounding error can carry a draw across the edge between two, and with
    hundreds of edges it now and then does.
    """
    pending = [
        sampler.sample(each, 1, SamplingParams(max_tokens=6, seed=seed + number, stop=[], top_k=4))
        for number, each in enumerate(prompts)
    ]
    return [each.result().sequences[0] for each in pending]


def prompt(rng: np.random.Generator) -> ModelInput:
    """A prompt of 4 to 23 tokens."""
    return ModelInput.from_ints(rng.integers(LOWEST_ID, HIGHEST_ID, rng.integers(4, 24)).tolist())


def lessons(rng: np.random.Generator) -> list[Datum]:
    """Four sequences of different lengths, with advantages of both signs."""
    data: list[Datum] = []
    for length in rng.integers(8, 40, 4):
        tokens = rng.integers(LOWEST_ID, HIGHEST_ID, length + 1)
        inputs = {
            "target_tokens": tokens[1:],
            "logprobs": np.full(length, -6.0, np.float32),
            "advantages": rng.normal(size=length).astype(np.float32),
        }
        data.append(Datum(ModelInput.from_ints(tokens[:-1].tolist()), inputs))
    return data


if __name__ == "__main__":
    url, key, base_model, *numbers = sys.argv[1:]
    seed, steps, samples = map(int, numbers)
    print(json.dumps(work(url, key, base_model, seed, steps, samples, lambda said: print(said, flush=True))))
