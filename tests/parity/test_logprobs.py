"""One number, four ways: sampled logprobs = compute_logprobs = trainer = transformers' own forward.

Through the whole stack, in process: client, protocol, server, engine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import make_tiny_model
from tinkerlite import SamplingClient, ServiceClient, TrainingClient
from tinkerlite.types import AdamParams, Datum, ModelInput, SampledSequence, SamplingParams
from tinkerlite_server.engine.catalog import build_catalog, resolve_folder
from tinkerlite_server.engine.local_engine import LocalEngine
from tinkerlite_server.engine.protocols import AdapterConfig, EngineLimits, Example, SampleWork, TrainBatch
from tinkerlite_server.errors import ServerError

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Stack:
    """A running backend, and a tokenizer-free way to make prompts for it."""

    name: str
    folder: Path
    vocab_size: int
    service: ServiceClient

    def prompts(self, count: int) -> list[list[int]]:
        rng = np.random.default_rng(0)
        start = rng.integers(3, self.vocab_size, 12).tolist()  # shared, so that packing shares it too
        return [[*start, *rng.integers(3, self.vocab_size, n + 1).tolist()] for n in range(count)]


@pytest.fixture(
    scope="module", params=["tiny", pytest.param("real", marks=[pytest.mark.real_model, pytest.mark.slow])]
)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if request.param == "tiny":
        folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=5)
        name, vocab_size = str(folder), 512
    else:
        name, folder, vocab_size = SMOLLM2, resolve_folder(SMOLLM2), 49152
    with ServiceClient(base_url=f"local://{name}") as service:
        yield Stack(name, folder, vocab_size, service)


def transformers_logprobs(folder: Path, tokens: list[int]) -> np.ndarray:
    """log p of tokens 1.. under transformers' own forward, fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        logprobs = model(ids).logits[0].log_softmax(-1)
    return logprobs[:-1].gather(-1, ids[0, 1:, None])[:, 0].numpy()


def scored(sampler: SamplingClient, tokens: list[int]) -> np.ndarray:
    first, *rest = sampler.compute_logprobs(ModelInput.from_ints(tokens)).result()
    assert first is None
    return np.array(rest, dtype=np.float32)


def trained(trainer: TrainingClient, sequences: list[list[int]]) -> list[np.ndarray]:
    data = [
        Datum(
            ModelInput.from_ints(tokens[:-1]),
            {"target_tokens": tokens[1:], "weights": np.ones(len(tokens) - 1, np.float32)},
        )
        for tokens in sequences
    ]
    outputs = trainer.forward(data, "cross_entropy").result().loss_fn_outputs
    return [output["logprobs"].to_numpy() for output in outputs]


def a_trained_run(stack: Stack) -> TrainingClient:
    """A run whose adapter is no longer zero."""
    trainer = stack.service.create_lora_training_client(stack.name, rank=8, seed=1)
    [tokens] = stack.prompts(1)
    datum = Datum(
        ModelInput.from_ints(tokens[:-1]),
        {"target_tokens": tokens[1:], "weights": np.ones(len(tokens) - 1, np.float32)},
    )
    trainer.forward_backward([datum], "cross_entropy")
    trainer.optim_step(AdamParams(learning_rate=1e-3)).result()
    return trainer


def completions(
    sampler: SamplingClient, prompts: list[list[int]], temperature: float
) -> list[list[SampledSequence]]:
    params = SamplingParams(max_tokens=7, seed=3, temperature=temperature, stop=[])
    futures = [sampler.sample(ModelInput.from_ints(prompt), 3, params) for prompt in prompts]
    return [future.result().sequences for future in futures]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_scorer_trainer_and_transformers_agree_on_the_base_model(stack: Stack, temperature: float):
    sampler = stack.service.create_sampling_client(base_model=stack.name)
    trainer = stack.service.create_lora_training_client(stack.name, rank=8)  # fresh: equal to the base
    prompts = stack.prompts(3)
    for prompt, group in zip(prompts, completions(sampler, prompts, temperature), strict=True):
        full = [prompt + sequence.tokens for sequence in group]
        for sequence, tokens, by_trainer in zip(group, full, trained(trainer, full), strict=True):
            expected = transformers_logprobs(stack.folder, tokens)
            np.testing.assert_allclose(by_trainer, expected, atol=1e-4)
            np.testing.assert_allclose(scored(sampler, tokens), expected, atol=1e-4)
            assert sequence.logprobs_np is not None
            np.testing.assert_allclose(sequence.logprobs_np, expected[len(prompt) - 1 :], atol=1e-4)


def test_sampler_scorer_and_trainer_agree_on_trained_weights(stack: Stack):
    trainer = a_trained_run(stack)
    sampler = trainer.save_weights_and_get_sampling_client()
    prompts = stack.prompts(3)
    for prompt, group in zip(prompts, completions(sampler, prompts, 1.0), strict=True):
        full = [prompt + sequence.tokens for sequence in group]
        for sequence, tokens, by_trainer in zip(group, full, trained(trainer, full), strict=True):
            np.testing.assert_allclose(scored(sampler, tokens), by_trainer, atol=1e-4)
            assert sequence.logprobs_np is not None
            np.testing.assert_allclose(sequence.logprobs_np, by_trainer[len(prompt) - 1 :], atol=1e-4)


def test_a_self_teacher_has_no_kl_even_on_one_token_replies(stack: Stack):
    trainer = a_trained_run(stack)
    student = trainer.save_weights_and_get_sampling_client()
    path = trainer.save_weights_for_sampler("itself").result().path
    teacher = stack.service.create_sampling_client(model_path=path)
    for max_tokens in (1, 6):
        params = SamplingParams(max_tokens=max_tokens, seed=1, stop=[])
        for prompt in stack.prompts(4):
            for sequence in student.sample(ModelInput.from_ints(prompt), 2, params).result().sequences:
                graded = scored(teacher, prompt + sequence.tokens)[-len(sequence.tokens) :]
                assert sequence.logprobs_np is not None
                np.testing.assert_allclose(sequence.logprobs_np, graded, atol=1e-4)


def test_in_bfloat16_sampler_and_trainer_differ_by_rounding_only(stack: Stack):
    folder = stack.folder
    engines = {
        dtype: LocalEngine(build_catalog([str(folder)], limits), limits)
        for dtype in ("float32", "bfloat16")
        for limits in [EngineLimits(device="cpu", dtype=dtype)]
    }
    text = "The capital of France is Paris, and the capital of Germany is"
    prompt = np.array(AutoTokenizer.from_pretrained(folder).encode(text))
    work = SampleWork(
        key="one",
        base_model=str(folder),
        adapter_id=None,
        prompt=prompt,
        num_samples=16,
        max_tokens=12,
        seeds=tuple(range(16)),
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        stop_ids=frozenset(),
    )
    coarse = engines["bfloat16"]
    coarse.submit(work)
    results = []
    while coarse.has_work:
        results += coarse.step()
    [result] = results
    assert not isinstance(result.outcome, ServerError)
    sequences = result.outcome.sequences
    full = [np.concatenate([prompt, sequence.tokens_np]).astype(np.int64) for sequence in sequences]
    examples = [Example(ids[:-1], ids[1:], {"weights": np.ones(len(ids) - 1, np.float32)}) for ids in full]
    trained_by: dict[str, np.ndarray] = {}
    for dtype, engine in engines.items():
        engine.create_run("run", str(folder), AdapterConfig(rank=4, alpha=32.0, seed=0))
        batch = TrainBatch(
            model_id="run", examples=examples, loss_fn="cross_entropy", loss_config={}, forward_only=True
        )
        [output] = engine.forward_backward([batch])
        assert not isinstance(output, ServerError)
        trained_by[dtype] = np.concatenate([lp[len(prompt) - 1 :] for lp in output.logprobs])
    sampled = np.concatenate([s.logprobs_np for s in sequences if s.logprobs_np is not None])
    assert np.abs(sampled - trained_by["bfloat16"]).mean() < 2e-2
    # bfloat16 keeps eight bits of a weight: against fp32 it is coarse, but not wrong.
    assert np.abs(trained_by["bfloat16"] - trained_by["float32"]).mean() < 5e-2
