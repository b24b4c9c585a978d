"""A stand-in for vLLM: as much of its Python interface as vllm_child.py uses, over our own sampler.

On the child's path it lets every part of ours be tested where vLLM is not installed. What it
samples is right, unless the variable STAND_IN_FAULTS names what it is to get wrong.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

__version__ = "stand-in"
FAULTS = os.environ.get("STAND_IN_FAULTS", "").split(", ")


@dataclass
class EngineArgs:
    model: str
    dtype: str
    max_model_len: int
    max_lora_rank: int
    max_loras: int
    max_cpu_loras: int
    skip_tokenizer_init: bool
    generation_config: str
    enable_lora: bool
    logprobs_mode: str
    max_logprobs: int
    disable_log_stats: bool
    kv_cache_memory_bytes: int
    seed: int
    hf_overrides: dict[str, str]
    enable_chunked_prefill: bool
    max_num_batched_tokens: int


@dataclass(kw_only=True)
class SamplingParams:
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop_token_ids: list[int]
    logprobs: int
    ignore_eos: bool
    detokenize: bool
    flat_logprobs: bool
    output_kind: RequestOutputKind

    def __post_init__(self) -> None:
        assert self.temperature == 0 or 0.01 <= self.temperature <= 2
        assert self.ignore_eos
        assert not self.detokenize
        if "refuses top_k 7" in FAULTS and self.top_k == 7:
            raise ValueError("seven is one too many")


class LLMEngine:
    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> LLMEngine:
        return cls(args)

    def __init__(self, args: EngineArgs) -> None:
        if "does not start" in FAULTS:
            raise RuntimeError("there is no room for the cache")
        self._name, self._dtype = args.model, args.dtype
        self.model_config = SimpleNamespace(max_model_len=args.max_model_len)
        self._steps = 0

    @cached_property
    def _sampler(self) -> Any:
        """Made when it is used: torch takes seconds to import."""
        from tinkerlite_server.engine.catalog import build_catalog
        from tinkerlite_server.engine.model_pool import ModelPool
        from tinkerlite_server.engine.protocols import EngineLimits
        from tinkerlite_server.engine.sampler import LocalSampler

        limits = EngineLimits(device="cpu", dtype=self._dtype)
        return LocalSampler(ModelPool(build_catalog([self._name], limits), limits), limits)

    def add_request(
        self,
        request_id: str,
        prompt: dict[str, Any],
        params: SamplingParams,
        *,
        lora_request: LoRARequest | None = None,
    ) -> None:
        from tinkerlite_server.engine.protocols import SampleWork

        assert prompt["type"] == "token"
        bare = "ignores adapters" in FAULTS
        work = SampleWork(
            key=request_id,
            base_model=self._name,
            adapter_id=None if bare or lora_request is None else lora_request.lora_name,
            prompt=np.array(prompt["prompt_token_ids"]),
            num_samples=1,
            max_tokens=params.max_tokens,
            seeds=(params.seed,),
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            stop_ids=frozenset(params.stop_token_ids),
            topk_sample_logprobs=params.logprobs,
            stream=True,
        )
        self._sampler.submit(work)

    def abort_request(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._sampler.cancel(request_id)

    def has_unfinished_requests(self) -> bool:
        return "_sampler" in self.__dict__ and self._sampler.has_work

    def add_lora(self, request: LoRARequest) -> bool:
        config = (Path(request.lora_path) / "adapter_config.json").read_text()
        if "no unembedding" in FAULTS and "lm_head" in config:
            raise ValueError("lm_head is not a target module here")
        self._sampler.load_adapter(request.lora_name, self._name, Path(request.lora_path))
        _names[request.lora_int_id] = request.lora_name
        return True

    def remove_lora(self, lora_id: int) -> bool:
        self._sampler.drop_adapter(_names.pop(lora_id))
        return True

    def step(self) -> list[SimpleNamespace]:
        from tinkerlite_server.engine.protocols import SampledToken

        self._steps += 1
        if "is killed at step 300" in FAULTS and self._steps == 300:
            os.kill(os.getpid(), 9)
        return [_output(made) for made in self._sampler.step() if isinstance(made, SampledToken)]


_names: dict[int, str] = {}


def _output(made: Any) -> SimpleNamespace:
    off = -0.5 if "is off by half a nat" in FAULTS else 0.0
    ids = [made.token, *(token for token, _ in made.topk)]
    logprobs = [made.logprob + off, *(logprob + off for _, logprob in made.topk)]
    flat = SimpleNamespace(token_ids=ids, logprobs=logprobs, start_indices=[0], end_indices=[len(ids)])
    completion = SimpleNamespace(token_ids=[made.token], logprobs=flat, finish_reason=made.stop_reason)
    return SimpleNamespace(request_id=made.key, outputs=[completion], finished=made.stop_reason is not None)
