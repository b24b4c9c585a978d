"""What our client does with another server of the protocol: sample, score, train, save, resume.

`loop` was run against SkyRL's server, its exchanges were recorded in skyrl-0.3.0.json, and a test
replays them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import tinkerlite
from tinkerlite.types import AdamParams, Datum, ModelInput, SamplingParams

TOKENS = [5, 6, 7, 8, 9, 10]
ADAM = AdamParams(learning_rate=1e-2)


def loop(url: str, key: str, base_model: str) -> dict[str, Any]:
    """Results by what was asked."""
    prompt = ModelInput.from_ints(TOKENS)
    inputs = {"target_tokens": TOKENS[1:], "weights": np.ones(len(TOKENS) - 1, np.float32)}
    lesson = Datum(ModelInput.from_ints(TOKENS[:-1]), inputs)
    with tinkerlite.ServiceClient(base_url=url, api_key=key) as service:
        base = service.create_sampling_client(base_model=base_model)
        drawn = base.sample(prompt, 2, SamplingParams(max_tokens=4, seed=1, stop="END")).result()
        training = service.create_lora_training_client(base_model, rank=4, seed=1)
        losses: list[float] = []
        for _ in range(3):
            update = training.forward_backward([lesson], "cross_entropy")
            training.optim_step(ADAM).result()
            losses.append(update.result().metrics["loss:sum"])
        sampler = training.save_weights_and_get_sampling_client("after-three")
        path = training.save_state("state").result().path
        resumed = service.create_training_client_from_state_with_optimizer(path)
        ours, theirs = (
            run.forward([lesson], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy()
            for run in (training, resumed)
        )
        return {
            "completions": [len(sequence.tokens) for sequence in drawn.sequences],
            "losses": losses,
            "trained": ours.tolist(),
            "resumed": theirs.tolist(),
            "scored": sampler.compute_logprobs(prompt).result(),
        }
