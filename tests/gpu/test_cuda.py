"""CUDA gives what a processor gives: one program on both, compared number by number.

Everything else in these tests says that the processor is right. `make test-gpu` runs them; TINKERLITE_GPU
names another device, were it to try the tests themselves.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import make_tiny_model
from tinkerlite import SamplingClient, ServiceClient, TrainingClient
from tinkerlite.types import AdamParams, Datum, ModelInput, SamplingParams, TensorData

pytestmark = pytest.mark.gpu

DEVICE = os.environ.get("TINKERLITE_GPU", "cuda")
EXACT = 1e-4
"""Nats, and relative to the largest gradient's effect: the bound of fp32 in all parity tests."""
ROUNDED = 0.05
"""Nats in bfloat16, on logprobs of some -6."""
RNG = np.random.default_rng(0)
PREFIX = RNG.integers(3, 500, 40).tolist()
SEQUENCES = [PREFIX + RNG.integers(3, 500, length).tolist() for length in (3, 17, 30, 30)]
SEQUENCES += [RNG.integers(3, 500, length).tolist() for length in (2, 64, 65, 200)]

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / request.param, arch=request.param)


@contextmanager
def service_on(device: str, dtype: str, folder: Path) -> Iterator[ServiceClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKERLITE_DEVICE", device)
        patch.setenv("TINKERLITE_DTYPE", dtype)
        with ServiceClient(base_url=f"local://{folder}") as service:
            yield service


def datum(tokens: list[int], **inputs: np.ndarray) -> Datum:
    data = {name: TensorData.from_numpy(value) for name, value in inputs.items()}
    return Datum(model_input=ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=data)


def policy_data() -> list[Datum]:
    rng = np.random.default_rng(1)
    return [
        datum(
            tokens,
            target_tokens=np.array(tokens[1:]),
            logprobs=np.full(len(tokens) - 1, -6.0, np.float32),
            advantages=rng.normal(size=len(tokens) - 1).astype(np.float32),
        )
        for tokens in SEQUENCES
    ]


def weighted_data() -> list[Datum]:
    """Cross-entropy with three targets a position, some of them twice."""
    rng = np.random.default_rng(2)
    return [
        datum(
            tokens,
            target_tokens=np.stack([tokens[1:], tokens[:-1], tokens[1:]], axis=1),
            weights=rng.normal(size=(len(tokens) - 1, 3)).astype(np.float32),
        )
        for tokens in SEQUENCES
    ]


def trained(trainer: TrainingClient) -> Arrays:
    """Logprobs of the trainer before each of three steps."""
    found: Arrays = {}
    rounds = [
        (policy_data(), "importance_sampling"),
        (weighted_data(), "cross_entropy"),
        (policy_data(), "ppo"),
    ]
    for number, (data, loss) in enumerate(rounds):
        output = trainer.forward_backward(data, loss).result()
        found[f"loss of step {number}"] = np.array([output.metrics["loss:sum"]])
        for place, each in enumerate(output.loss_fn_outputs):
            found[f"logprobs of step {number}, {place}"] = each["logprobs"].to_numpy()
        stepped = trainer.optim_step(AdamParams(learning_rate=1e-3, grad_clip_norm=1.0)).result()
        found[f"norm of step {number}"] = np.array([(stepped.metrics or {})["grad_norm"]])
    return found


def scored(sampler: SamplingClient) -> Arrays:
    """All at once: they share passes and a prefix."""
    pending = [sampler.compute_logprobs(ModelInput.from_ints(tokens)) for tokens in SEQUENCES]
    return {f"scores {place}": np.array(each.result()[1:]) for place, each in enumerate(pending)}


def sampled(sampler: SamplingClient) -> Arrays:
    """Greedy, seeded, within nucleus and top-k; with alternatives of prompt and completion."""
    settings = [
        SamplingParams(max_tokens=24, temperature=0.0, stop=[]),
        SamplingParams(max_tokens=24, temperature=1.0, seed=3, stop=[]),
        SamplingParams(max_tokens=12, temperature=0.7, top_p=0.8, top_k=20, seed=4, stop=[]),
    ]
    found: Arrays = {}
    pending = [
        sampler.sample(
            ModelInput.from_ints(tokens[: len(tokens) // 2]),
            3,
            each,
            topk_prompt_logprobs=5,
            topk_sample_logprobs=5,
        )
        for tokens in SEQUENCES
        for each in settings
    ]
    for number, future in enumerate(pending):
        for place, sequence in enumerate(future.result().sequences):
            found[f"tokens {number}.{place}"] = np.array(sequence.tokens)
            found[f"logprobs {number}.{place}"] = np.array(sequence.logprobs)
    return found


def program(service: ServiceClient, folder: Path, *, rank: int) -> Arrays:
    trainer = (
        service.create_lora_training_client(str(folder), rank=rank, seed=0)
        if rank
        else service.create_training_client(str(folder))
    )
    base = service.create_sampling_client(base_model=str(folder))
    found = {f"base: {name}": value for name, value in scored(base).items()}
    found |= trained(trainer)
    student = trainer.save_weights_and_get_sampling_client()
    return found | scored(student) | sampled(student)


def compare(ours: Arrays, theirs: Arrays, bound: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, name
        scale = max(1.0, float(np.abs(theirs[name]).max())) if name.startswith(("loss", "norm")) else 1.0
        assert np.abs(value - theirs[name]).max() <= bound * scale, name


@pytest.mark.parametrize("rank", [4, 0], ids=["adapter", "all weights"])
def test_training_scoring_and_sampling_are_those_of_a_processor(folder: Path, rank: int):
    results: list[Arrays] = []
    for device in ("cpu", DEVICE):
        with service_on(device, "float32", folder) as service:
            results.append(program(service, folder, rank=rank))
    compare(results[1], results[0], EXACT)


def test_two_adapters_in_one_pass_and_the_second_turn_of_their_conversations(folder: Path):
    results: list[Arrays] = []
    for device in ("cpu", DEVICE):
        with service_on(device, "float32", folder) as service:
            runs = [service.create_lora_training_client(str(folder), rank=4, seed=seed) for seed in (0, 1)]
            for run in runs:
                trained(run)
            samplers = [run.save_weights_and_get_sampling_client() for run in runs]
            greedy = SamplingParams(max_tokens=16, temperature=0.0, stop=[])
            prompts = [PREFIX, PREFIX]
            found: Arrays = {}
            for turn in range(2):
                pending = [
                    sampler.sample(ModelInput.from_ints(prompt), 1, greedy)
                    for sampler, prompt in zip(samplers, prompts, strict=True)
                ]
                said = [each.result().sequences[0] for each in pending]
                found |= {f"turn {turn} of {n}": np.array(each.logprobs) for n, each in enumerate(said)}
                prompts = [[*p, *each.tokens, 7, 8] for p, each in zip(prompts, said, strict=True)]
            results.append(found)
    compare(results[1], results[0], EXACT)


def test_in_bfloat16_sampler_scorer_and_trainer_agree_with_each_other(folder: Path):
    with service_on(DEVICE, "bfloat16", folder) as service:
        trainer = service.create_lora_training_client(str(folder), rank=4, seed=0)
        trained(trainer)
        sampler = trainer.save_weights_and_get_sampling_client()
        prompt = ModelInput.from_ints(PREFIX)
        drawn = sampler.sample(prompt, 8, SamplingParams(max_tokens=32, seed=5, stop=[])).result()
        for sequence in drawn.sequences:
            whole = PREFIX + list(sequence.tokens)
            scores = sampler.compute_logprobs(ModelInput.from_ints(whole)).result()[len(PREFIX) :]
            targets = np.array(whole[1:])
            weights = np.zeros(len(targets), np.float32)
            forward = trainer.forward([datum(whole, target_tokens=targets, weights=weights)], "cross_entropy")
            trainers = forward.result().loss_fn_outputs[0]["logprobs"].to_numpy()[len(PREFIX) - 1 :]
            assert np.abs(np.array(scores) - np.array(sequence.logprobs)).max() < ROUNDED
            assert np.abs(trainers - np.array(sequence.logprobs)).max() < ROUNDED


def test_many_at_once_are_each_as_if_alone(folder: Path):
    with service_on(DEVICE, "float32", folder) as service:
        sampler = service.create_sampling_client(base_model=str(folder))
        settings = [SamplingParams(max_tokens=8 + i % 40, seed=i, stop=[]) for i in range(150)]
        prompts = [ModelInput.from_ints(SEQUENCES[i % len(SEQUENCES)][:30]) for i in range(150)]
        together = [sampler.sample(p, 1, each) for p, each in zip(prompts, settings, strict=True)]
        results = [future.result().sequences[0] for future in together]
        for i in range(0, 150, 10):
            alone = sampler.sample(prompts[i], 1, settings[i]).result().sequences[0]
            assert list(alone.tokens) == list(results[i].tokens)
            assert np.array(alone.logprobs) == pytest.approx(np.array(results[i].logprobs), abs=EXACT)
