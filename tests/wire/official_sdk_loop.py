"""A training loop written for the `tinker` SDK, which a test runs in that SDK's own environment.

    TINKER_API_KEY=tml-any python official_sdk_loop.py URL BASE_MODEL

Samples, scores, trains, saves and resumes, checks what it gets, and prints "done". Knows
nothing of tinkerlite.
"""

import math
import sys

import tinker
from tinker import types

PROMPT = [5, 6, 7, 8, 9]


def datum(tokens, **inputs):
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)


def lesson():
    return datum(PROMPT[:-1], target_tokens=PROMPT[1:], weights=[1.0] * (len(PROMPT) - 1))


def sampling(service, base_model):
    """Samples differ among themselves and not between equal seeds; scoring leaves out the first token."""
    client = service.create_sampling_client(base_model=base_model).result()
    prompt = types.ModelInput.from_ints(PROMPT)
    params = types.SamplingParams(max_tokens=5, seed=1, stop=[])
    response = client.sample(prompt, num_samples=3, sampling_params=params).result()
    again = client.sample(prompt, num_samples=3, sampling_params=params).result()
    tokens = [sequence.tokens for sequence in response.sequences]
    assert tokens == [sequence.tokens for sequence in again.sequences]
    assert len({tuple(each) for each in tokens}) == 3
    for sequence in response.sequences:
        assert len(sequence.tokens) == len(sequence.logprobs) == 5
        assert all(math.isfinite(lp) and lp <= 0 for lp in sequence.logprobs)
    logprobs = client.compute_logprobs(prompt).result()
    assert logprobs[0] is None
    assert len(logprobs) == len(PROMPT)
    assert all(lp <= 0 for lp in logprobs[1:])


def training(service, base_model):
    """Steps lower the loss, whether awaited one by one or sent ahead; weights handed over score alike."""
    client = service.create_lora_training_client(base_model=base_model, rank=4, seed=1).result()
    losses = []
    for _ in range(3):
        update = client.forward_backward([lesson()] * 3, loss_fn="cross_entropy")
        stepped = client.optim_step(types.AdamParams(learning_rate=1e-3))
        losses.append(update.result().metrics["loss:sum"])
        stepped.result()
    assert losses[0] > losses[1] > losses[2], losses
    output = client.forward([lesson()], loss_fn="cross_entropy").result()
    trained = output.loss_fn_outputs[0]["logprobs"].tolist()
    sampler = client.save_weights_and_get_sampling_client().result()
    scored = sampler.compute_logprobs(types.ModelInput.from_ints(PROMPT)).result()[1:]
    assert all(abs(a - b) < 1e-4 for a, b in zip(trained, scored, strict=True)), (trained, scored)
    return client, trained


def reinforcement(client):
    """The policy losses take logprobs and advantages."""
    client.forward_backward(
        [
            datum(
                PROMPT[:-1],
                target_tokens=PROMPT[1:],
                logprobs=[0.0, -1.0, -1.0, -1.0],
                advantages=[0.0, 1.0, -1.0, 0.5],
            )
        ],
        loss_fn="importance_sampling",
    ).result()
    client.optim_step(types.AdamParams(learning_rate=0.0)).result()


def resuming(service, client, trained):
    """What was saved goes on where it was, and samples as it did."""
    path = client.save_state("end").result().path
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    output = resumed.forward([lesson()], loss_fn="cross_entropy").result()
    assert output.loss_fn_outputs[0]["logprobs"].tolist() == trained
    resumed.optim_step(types.AdamParams(learning_rate=1e-3)).result()
    sampler_path = client.save_weights_for_sampler("end").result().path
    sampler = service.create_sampling_client(model_path=sampler_path).result()
    scored = sampler.compute_logprobs(types.ModelInput.from_ints(PROMPT)).result()[1:]
    assert all(abs(a - b) < 1e-4 for a, b in zip(trained, scored, strict=True))


def mistakes(client):
    """A wrong id is an error with a reason, and the run goes on after it."""
    bad = datum([1, 10**6], target_tokens=[2, 3], weights=[1.0, 1.0])
    try:
        client.forward_backward([bad], loss_fn="cross_entropy").result()
        reason = "it was accepted"
    except tinker.BadRequestError as error:
        reason = str(error)
    assert "token id 1000000" in reason, reason
    client.forward([lesson()], loss_fn="cross_entropy").result()


def listing(url, base_model, run_id):
    """The REST side: what the server has, and what was saved."""
    rest = tinker.RestClient(base_url=url)
    models = rest.get_server_capabilities().result().supported_models
    assert [model.model_name for model in models] == [base_model]
    checkpoints = rest.list_checkpoints(run_id).result().checkpoints
    assert sorted(each.checkpoint_id for each in checkpoints) == ["sampler_weights/end", "weights/end"]
    assert rest.get_training_run(run_id).result().base_model == base_model


def main(url, base_model):
    with tinker.ServiceClient(base_url=url) as service:
        sampling(service, base_model)
        client, trained = training(service, base_model)
        resuming(service, client, trained)
        reinforcement(client)
        mistakes(client)
        listing(url, base_model, client.get_info().model_id)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
