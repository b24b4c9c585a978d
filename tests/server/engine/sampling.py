"""What the sampler's tests stand on: works, runs to the end, and transformers' own numbers."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tinkerlite.types import SampledSequence, SampleResponse
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.lora import Adapter, LoraPair
from tinkerlite_server.engine.model_pool import ModelPool
from tinkerlite_server.engine.protocols import AdapterConfig, EngineLimits, SampleWork
from tinkerlite_server.engine.sampler import LocalSampler
from tinkerlite_server.errors import ServerError

VOCABULARY = 512
EXTRA_ROWS = 6
"""Embedding rows beyond the tokenizer's tokens."""


def make_sampler(*folders: Path, dtype: str = "float32", **limits: Any) -> LocalSampler:
    settings = EngineLimits(device="cpu", dtype=dtype, **limits)
    return LocalSampler(ModelPool(build_catalog([str(f) for f in folders], settings), settings), settings)


def model_of(sampler: LocalSampler, folder: Path) -> BaseModel:
    return sampler._pool.get(str(folder))


def some_tokens(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCABULARY, length)


def make_work(folder: Path, prompt: Any, **changes: Any) -> SampleWork:
    count, seed = changes.get("num_samples", 1), changes.pop("seed", 0)
    settings: dict[str, Any] = {
        "key": "work",
        "base_model": str(folder),
        "adapter_id": None,
        "prompt": np.array(prompt, np.int64),
        "num_samples": 1,
        "max_tokens": 12,
        "seeds": tuple(1000 * seed + i for i in range(count)),
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "stop_ids": frozenset(),
    }
    return SampleWork(**{**settings, **changes})


def scoring(folder: Path, tokens: Any, **changes: Any) -> SampleWork:
    """What compute_logprobs asks."""
    return make_work(folder, tokens, **{"max_tokens": 1, "prompt_logprobs": True, **changes})


def outcomes(sampler: LocalSampler, *works: SampleWork) -> dict[str, SampleResponse | ServerError]:
    for work in works:
        sampler.submit(work)
    done: dict[str, SampleResponse | ServerError] = {}
    for _ in range(10_000):
        if not sampler.has_work:
            return done
        for result in sampler.step():
            assert result.key not in done
            done[result.key] = result.outcome
    raise AssertionError("the sampler never ran out of work")


def responses(sampler: LocalSampler, *works: SampleWork) -> list[SampleResponse]:
    """Responses in the order of the works, none an error."""
    done = outcomes(sampler, *works)
    found = [done[work.key] for work in works]
    for outcome in found:
        if isinstance(outcome, ServerError):
            raise outcome
    return cast(list[SampleResponse], found)


def sampled(sampler: LocalSampler, work: SampleWork) -> SampledSequence:
    return responses(sampler, work)[0].sequences[0]


def logprobs_of(sequence: SampledSequence) -> np.ndarray:
    assert sequence.logprobs_np is not None
    return sequence.logprobs_np


def prompt_logprobs_of(response: SampleResponse) -> np.ndarray:
    assert response.prompt_logprobs_np is not None
    return response.prompt_logprobs_np


def same(one: SampleResponse, other: SampleResponse) -> None:
    """Equal tokens and ends; equal logprobs up to rounding."""
    assert [s.tokens for s in one.sequences] == [s.tokens for s in other.sequences]
    assert [s.stop_reason for s in one.sequences] == [s.stop_reason for s in other.sequences]
    for left, right in zip(one.sequences, other.sequences, strict=True):
        np.testing.assert_allclose(logprobs_of(left), logprobs_of(right), atol=1e-5, rtol=0)


def make_adapter(model: BaseModel, seed: int, **config: Any) -> Adapter:
    """A random adapter whose B is not zero."""
    settings = AdapterConfig(**{"rank": 4, "alpha": 8.0, "seed": seed, **config})
    fresh = Adapter.fresh(settings, model.bank.targets)
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        path: LoraPair(pair.a.detach(), 0.15 * torch.randn(pair.b.shape, generator=generator))
        for path, pair in fresh.pairs.items()
    }
    return Adapter(settings, pairs)


def reference_logits(folder: Path, tokens: Any, adapter: Adapter | None = None) -> torch.Tensor:
    """(T, V) logits of transformers' own model and attention, the adapter merged into its weights."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    embedding = model.get_input_embeddings().weight
    if adapter is not None:
        for path, pair in adapter.pairs.items():
            module = model.get_submodule(path)
            delta = adapter.scale * pair.b @ pair.a
            # The unembedding alone is adapted, tied or not.
            module.weight = torch.nn.Parameter(module.weight.detach() + delta)
        model.get_input_embeddings().weight = embedding
    with torch.no_grad():
        return model(torch.tensor([list(tokens)])).logits[0]


def reference_logprobs(
    folder: Path, prompt: Any, completion: Any, adapter: Adapter | None = None
) -> np.ndarray:
    """log p of the completion's tokens after the prompt."""
    tokens = [*prompt, *completion]
    table = reference_logits(folder, tokens, adapter).log_softmax(-1)
    return np.array([table[i - 1, tokens[i]].item() for i in range(len(prompt), len(tokens))])
