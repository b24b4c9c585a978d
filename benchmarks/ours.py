"""What we take, over HTTP on loopback: the server is a process of its own, and so is this client.

Some work is also done in process, as `local://` does it.

Every function takes a job and returns numbers by metric, one a repetition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from benchmarks.busy_core import busy_core
from benchmarks.work import Ids, Job, Work, converse, policy, timed
from cookbook.datums import policy_datum
from cookbook.machine import peak_rss_mib
from cookbook.server_process import running_server
from tinkerlite import SamplingClient, ServiceClient, TrainingClient
from tinkerlite.types import AdamParams, Datum, ModelInput, SamplingParams, TensorData

Measured = dict[str, list[float]]

ADAM = AdamParams(learning_rate=1e-4)


@contextmanager
def _service(job: Job) -> Iterator[ServiceClient]:
    """A client of the job's server, or of a fresh one that ends with the block."""
    if job.base_url:
        with ServiceClient(base_url=job.base_url) as service:
            yield service
        return
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with (
            running_server([job.model], folder / "data", folder / "server.log") as url,
            ServiceClient(base_url=url) as service,
        ):
            yield service


def _in_process(job: Job) -> Job:
    """The same, without a port and a second process."""
    return replace(job, base_url=f"local://{job.model}")


def _sampler(service: ServiceClient, job: Job) -> SamplingClient:
    if not job.work.rank:
        return service.create_sampling_client(base_model=job.model)
    return _trainer(service, job).save_weights_and_get_sampling_client()


def _trainer(service: ServiceClient, job: Job) -> TrainingClient:
    return service.create_lora_training_client(job.model, rank=job.work.rank, seed=0)


def _rates(tokens: int, seconds: Sequence[float]) -> list[float]:
    return [tokens / each for each in seconds]


# ---- sampling ----


def sample(job: Job) -> Measured:
    """Sampled tokens per second; all prompts are sent at once, and logprobs come with the tokens."""
    return _sampled(job, [job.work.tokens] * job.work.groups, [job.work.prompt] * job.work.groups)


def sample_in_process(job: Job) -> Measured:
    """The same in process."""
    return sample(_in_process(job))


def sample_mixed(job: Job) -> Measured:
    """The same number of tokens, with lengths spread evenly from a quarter to seven quarters."""
    spread = np.linspace(0.25, 1.75, job.work.groups)
    tokens = np.round(job.work.tokens * spread).astype(int)
    # Another order, so that long prompts do not go with long completions.
    prompts = np.random.default_rng(0).permutation(np.round(job.work.prompt * spread).astype(int))
    return _sampled(job, tokens.tolist(), prompts.tolist())


def _sampled(job: Job, tokens: Sequence[int], prompts: Sequence[int]) -> Measured:
    with _service(job) as service:
        sampler = _sampler(service, job)

        def once(repetition: int) -> None:
            drawn = replace(job.work, prompt=max(prompts)).draw(repetition, job.vocab_size)
            cut = [group[0][:length] for group, length in zip(drawn, prompts, strict=True)]
            _sample(sampler, cut, tokens, job.work.samples)

        if job.compiles:
            once(0)
        else:
            _sample(sampler, [job.work.small().draw(0, job.vocab_size)[0][0]], [8], job.work.samples)
        return {"tokens_per_second": _rates(sum(tokens) * job.work.samples, timed(once, job.repeats))}


def _sample(
    sampler: SamplingClient, prompts: Sequence[Ids], tokens: Sequence[int], samples: int
) -> list[list[tuple[list[int], np.ndarray]]]:
    """Completions by prompt, as (tokens, logprobs). Nothing stops them early, so their lengths are known."""
    pending = [
        sampler.sample(
            ModelInput.from_ints(prompt),
            num_samples=samples,
            sampling_params=SamplingParams(max_tokens=length, temperature=1.0, stop=[]),
        )
        for prompt, length in zip(prompts, tokens, strict=True)
    ]
    completions = [
        [(s.tokens, np.asarray(s.logprobs, np.float32)) for s in future.result().sequences]
        for future in pending
    ]
    lengths = [[len(ids) for ids, _ in group] for group in completions]
    if lengths != [[length] * samples for length in tokens]:
        raise RuntimeError(f"asked for completions of {list(tokens)} tokens, got {lengths}")
    return completions


def sample_turns(job: Job) -> Measured:
    """Seconds of whole conversations, each turn sent with all that came before it."""
    with _service(job) as service:
        sampler = _sampler(service, job)

        def once(repetition: int, work: Work = job.work) -> None:
            def answer(prompts: list[Ids]) -> list[list[int]]:
                completions = _sample(sampler, prompts, [work.tokens] * len(prompts), 1)
                return [tokens for [(tokens, _)] in completions]

            converse(work, repetition, job.vocab_size, answer)

        once(0, job.warm_up)
        return {"seconds": timed(once, job.repeats)}


# ---- scoring ----


def score(job: Job) -> Measured:
    """Tokens per second through `compute_logprobs`; all sequences are sent at once."""
    with _service(job) as service:
        sampler = _sampler(service, job)

        def once(repetition: int, work: Work = job.work) -> None:
            _score(sampler, [ids for group in work.draw(repetition, job.vocab_size) for ids in group])

        once(0, job.warm_up)
        return {"tokens_per_second": _rates(job.work.total_tokens, timed(once, job.repeats))}


def score_in_process(job: Job) -> Measured:
    """The same in process."""
    return score(_in_process(job))


def score_unshared(job: Job) -> Measured:
    """Sequences of the same lengths that have nothing in common."""
    return score(replace(job, work=job.work.unshared()))


def _score(sampler: SamplingClient, sequences: Sequence[Ids]) -> list[list[float | None]]:
    pending = [sampler.compute_logprobs(ModelInput.from_ints(ids)) for ids in sequences]
    return [future.result() for future in pending]


# ---- training ----


def train(job: Job) -> Measured:
    """Tokens per second of forward_backward and optim_step, and the peak memory of server and client."""
    # On a server of its own, whose peak is that of this work alone.
    measured = train_shared(replace(job, base_url=""))
    return {**measured, "peak_rss_mib": [peak_rss_mib()]}


def train_shared(job: Job) -> Measured:
    """The same without the memory, on any server."""
    with _service(job) as service:
        trainer = _trainer(service, job)

        def once(repetition: int, work: Work = job.work) -> None:
            _update(trainer, _datums(work, repetition, job.vocab_size))

        once(0, job.warm_up)
        return {"tokens_per_second": _rates(job.work.total_tokens, timed(once, job.repeats))}


def train_in_process(job: Job) -> Measured:
    """The same in process."""
    return train_shared(_in_process(job))


def train_unshared(job: Job) -> Measured:
    """Sequences of the same lengths that have nothing in common."""
    return train_shared(replace(job, work=job.work.unshared()))


def _datums(work: Work, repetition: int, vocab_size: int) -> list[Datum]:
    examples = [policy(ids, work.prompt) for group in work.draw(repetition, vocab_size) for ids in group]
    return [
        Datum(
            model_input=ModelInput.from_ints(example.tokens),
            loss_fn_inputs={
                "target_tokens": TensorData.from_numpy(example.targets),
                "logprobs": TensorData.from_numpy(example.logprobs),
                "advantages": TensorData.from_numpy(example.advantages),
            },
        )
        for example in examples
    ]


def _update(trainer: TrainingClient, data: list[Datum]) -> None:
    update = trainer.forward_backward(data, "importance_sampling")
    stepped = trainer.optim_step(ADAM)
    update.result()
    stepped.result()


def rl_step(job: Job) -> Measured:
    """Seconds of one step: weights to the sampler, sample groups, train on rewards less the group's mean."""
    with _service(job) as service:
        student = _trainer(service, job)

        def once(repetition: int, work: Work = job.work) -> None:
            prompts = [group[0][: work.prompt] for group in work.draw(repetition, job.vocab_size)]
            sampler = student.save_weights_and_get_sampling_client()
            groups = _sample(sampler, prompts, [work.tokens] * work.groups, work.samples)
            data: list[Datum] = []
            for prompt, group in zip(prompts, groups, strict=True):
                rewards = np.array([tokens[0] % 2 for tokens, _ in group], np.float32)
                for (tokens, logprobs), advantage in zip(group, rewards - rewards.mean(), strict=True):
                    advantages = np.full(len(tokens), advantage, np.float32)
                    data.append(policy_datum(prompt.tolist(), tokens, logprobs, advantages))
            _update(student, data)

        once(0, job.warm_up)
        return {"seconds": timed(once, job.repeats)}


def opd_step(job: Job) -> Measured:
    """Seconds of one step: weights to the sampler, sample, let the base model grade, train."""
    with _service(job) as service:
        student = _trainer(service, job)
        teacher = service.create_sampling_client(base_model=job.model)

        def once(repetition: int, work: Work = job.work) -> None:
            prompts = [group[0][: work.prompt] for group in work.draw(repetition, job.vocab_size)]
            sampler = student.save_weights_and_get_sampling_client()
            groups = _sample(sampler, prompts, [work.tokens] * work.groups, work.samples)
            flat = [(prompt, *each) for prompt, group in zip(prompts, groups, strict=True) for each in group]
            graded = _score(teacher, [np.concatenate([prompt, tokens]) for prompt, tokens, _ in flat])
            data = [
                policy_datum(
                    prompt.tolist(),
                    tokens,
                    logprobs,
                    np.asarray(grades[work.prompt :], np.float32) - logprobs,
                )
                for (prompt, tokens, logprobs), grades in zip(flat, graded, strict=True)
            ]
            _update(student, data)

        once(0, job.warm_up)
        return {"seconds": timed(once, job.repeats)}


def opd_step_in_process(job: Job) -> Measured:
    """The same in process."""
    return opd_step(_in_process(job))


def weights_to_sampler(job: Job) -> Measured:
    """Milliseconds until new weights can be sampled from, after an update of them."""
    with _service(job) as service:
        trainer = _trainer(service, job)
        data = _datums(job.work, 0, job.vocab_size)
        milliseconds: list[float] = []
        for _ in range(job.repeats + 1):
            _update(trainer, data)
            started = perf_counter()
            trainer.save_weights_and_get_sampling_client()
            milliseconds.append(1e3 * (perf_counter() - started))
        return {"milliseconds": milliseconds[1:]}


# ---- latency ----


def request(job: Job) -> Measured:
    """Milliseconds of one short prompt and one token, there and back."""
    with _service(job) as service:
        sampler = _sampler(service, job)

        def once(repetition: int) -> None:
            _sample(sampler, [job.work.draw(repetition, job.vocab_size)[0][0][: job.work.prompt]], [1], 1)

        once(0)
        return {"milliseconds": [1e3 * each for each in timed(once, job.repeats)]}


def request_in_process(job: Job) -> Measured:
    """The same in process."""
    return request(_in_process(job))


def request_overhead(job: Job) -> Measured:
    """Milliseconds of the same less what the server says that its engine took for that very request."""
    with _service(job) as service:
        sampler = _sampler(service, job)
        once = SamplingParams(max_tokens=1, temperature=1.0, stop=[])
        milliseconds: list[float] = []
        for repetition in range(job.repeats + 1):
            prompt = ModelInput.from_ints(job.work.draw(repetition, job.vocab_size)[0][0][: job.work.prompt])
            started = perf_counter()
            [sequence] = sampler.sample(prompt, 1, once).result().sequences
            whole = 1e3 * (perf_counter() - started)
            milliseconds.append(whole - _engine_milliseconds(service, sequence.sequence_id))
        return {"milliseconds": milliseconds[1:]}


def _engine_milliseconds(service: ServiceClient, sequence_id: str) -> float:
    """What the engine took for a sample request: the server keeps results, and says so with each."""
    connection, request_id = service.connection, sequence_id.rpartition(":")[0]
    again = connection.wait(connection.send("POST", "retrieve_future", json={"request_id": request_id}))
    timing = again.headers["server-timing"]
    found = re.search(r"engine;dur=([\d.]+)", timing)
    if found is None:
        raise RuntimeError(f"the server's timing lacks its engine's: {timing}")
    return float(found[1])


def sample_beside_a_busy_core(job: Job) -> Measured:
    """Share of the undisturbed rate that is left while another process keeps one core busy."""
    undisturbed = sample(job)["tokens_per_second"]
    with busy_core():
        disturbed = sample(job)["tokens_per_second"]
    return {"share": [each / median(undisturbed) for each in disturbed]}


def cold_start(job: Job) -> Measured:
    """Seconds from the server's command line to the first sampled token, the model being on disk."""

    seconds: list[float] = []
    for repetition in range(job.repeats):
        prompt = job.work.draw(repetition, job.vocab_size)[0][0][: job.work.prompt]
        started = perf_counter()
        with _service(replace(job, base_url="")) as service:
            _sample(_sampler(service, job), [prompt], [1], 1)
            seconds.append(perf_counter() - started)
    return {"seconds": seconds}
