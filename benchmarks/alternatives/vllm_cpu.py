"""What vLLM takes on a CPU, in this process: compiled, or eager where starting fast matters more.

Its engine answers no HTTP requests here, which is in its favour. One engine serves all jobs of a process;
sampled logprobs come with the tokens, and prompts are remembered only where conversations go on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, time
from typing import Any

import numpy as np

from benchmarks.work import Ids, Job, Work, converse, timed

Measured = dict[str, list[float]]

_LONGEST = 2048
"""Tokens of the longest sequence that an engine is prepared for."""
_adapter_ids = count(1)
_first_token_seconds: list[float] = []
"""How long after the start of this process each engine had sampled a token."""


@cache
def _engine(folder: str, dtype: str, rank: int, quick: bool, remembers: bool) -> Any:
    import psutil
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    engine = LLM(
        folder,
        dtype=dtype,
        max_model_len=_LONGEST,
        enforce_eager=quick,
        enable_prefix_caching=remembers,
        skip_tokenizer_init=True,
        enable_lora=rank > 0,
        max_lora_rank=rank or 16,
        max_loras=1,
    )
    _generate(engine, [np.arange(8)], 1, 1, None)
    _first_token_seconds.append(time() - psutil.Process().create_time())
    return engine


def _engine_of(job: Job) -> Any:
    return _engine(job.folder, job.dtype, job.work.rank, job.quick, job.work.turns > 1)


# ---- rows ----


def sample(job: Job) -> Measured:
    """Sampled tokens per second; all prompts are handed over at once."""
    engine = _engine_of(job)
    with TemporaryDirectory() as scratch:
        adapter = _write_adapter(job, Path(scratch)) if job.work.rank else None

        def once(repetition: int, work: Work = job.work) -> None:
            drawn = work.draw(repetition, job.vocab_size)
            completions = _generate(
                engine, [g[0][: work.prompt] for g in drawn], work.samples, work.tokens, adapter
            )
            assert [len(ids) for ids in completions] == [work.tokens] * work.sequences

        once(0, job.warm_up)
        return {"tokens_per_second": [job.work.sampled_tokens / each for each in timed(once, job.repeats)]}


def sample_turns(job: Job) -> Measured:
    """Seconds of whole conversations; vLLM's own prefix cache remembers them."""
    engine = _engine_of(job)

    def once(repetition: int, work: Work = job.work) -> None:
        converse(
            work, repetition, job.vocab_size, lambda prompts: _generate(engine, prompts, 1, work.tokens, None)
        )

    once(0, job.warm_up)
    return {"seconds": timed(once, job.repeats)}


def score(job: Job) -> Measured:
    """Tokens per second of the logprobs of prompts, each of which also yields a token."""
    engine = _engine_of(job)
    parameters = _parameters(max_tokens=1, prompt_logprobs=0)

    def once(repetition: int, work: Work = job.work) -> None:
        sequences = [ids for group in work.draw(repetition, job.vocab_size) for ids in group]
        outputs = engine.generate(_prompts(sequences), parameters, use_tqdm=False)
        assert [len(each.prompt_logprobs) for each in outputs] == [len(ids) for ids in sequences]

    once(0, job.warm_up)
    return {"tokens_per_second": [job.work.total_tokens / each for each in timed(once, job.repeats)]}


def request(job: Job) -> Measured:
    """Milliseconds of one short prompt and one token, in process."""
    engine = _engine_of(job)

    def once(repetition: int) -> None:
        prompt = job.work.draw(repetition, job.vocab_size)[0][0][: job.work.prompt]
        _generate(engine, [prompt], 1, 1, None)

    once(0)
    return {"milliseconds": [1e3 * each for each in timed(once, job.repeats)]}


def weights_to_sampler(job: Job) -> Measured:
    """Milliseconds of writing an adapter's files, loading them in place of the last, and nothing more."""
    engine = _engine_of(job)
    with TemporaryDirectory() as scratch:

        def once(_repetition: int) -> None:
            adapter = _write_adapter(job, Path(scratch))
            assert engine.llm_engine.add_lora(adapter)

        once(0)
        return {"milliseconds": [1e3 * each for each in timed(once, job.repeats)]}


_FIRST_TOKEN = """
import json, sys
from benchmarks.alternatives import vllm_cpu
from benchmarks.work import Job, Work
given = json.loads(sys.argv[1])
vllm_cpu.request(Job(**{**given, "work": Work(**given["work"])}))
"""


def cold_start(job: Job) -> Measured:
    """Seconds of a script that loads the model, and samples one token; compiled code is kept by vLLM.

    In a quick run those that this process took for it at its own start.
    """
    if job.quick:
        _engine_of(job)
        return {"seconds": _first_token_seconds[:1]}
    seconds: list[float] = []
    for _ in range(job.repeats):
        started = perf_counter()
        given = json.dumps(asdict(replace(job, repeats=0)))
        subprocess.run([sys.executable, "-c", _FIRST_TOKEN, given], check=True)
        seconds.append(perf_counter() - started)
    return {"seconds": seconds}


# ---- sampling ----


def _parameters(**given: Any) -> Any:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    return SamplingParams(temperature=1.0, ignore_eos=True, detokenize=False, **given)


def _prompts(sequences: Sequence[Ids]) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": ids.tolist()} for ids in sequences]


def _generate(
    engine: Any, prompts: Sequence[Ids], samples: int, tokens: int, adapter: Any
) -> list[Sequence[int]]:
    """Completions of all prompts, each with the logprobs of its tokens."""
    parameters = _parameters(n=samples, max_tokens=tokens, logprobs=0)
    outputs = engine.generate(_prompts(prompts), parameters, use_tqdm=False, lora_request=adapter)
    return [completion.token_ids for output in outputs for completion in output.outputs]


# ---- adapters ----


def _write_adapter(job: Job, folder: Path) -> Any:
    """An adapter in PEFT's files, and vLLM's handle of it: a new one each time, under a new number."""
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    number = next(_adapter_ids)
    write_adapter_files(job.folder, job.work.rank, folder / str(number))
    return LoRARequest(f"adapter-{number}", number, str(folder / str(number)))


def write_adapter_files(model: str, rank: int, folder: Path) -> None:
    """A random adapter of every linear layer but the unembedding, in a new folder."""
    from safetensors.torch import save_file

    tensors = _adapter_tensors(model, rank)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({name.split(".")[-3] for name in tensors})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 32, "target_modules": modules, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@cache
def _adapter_tensors(folder: str, rank: int) -> dict[str, Any]:
    """Random A and B by their names in PEFT's files."""
    import torch
    from safetensors import safe_open

    drawn = torch.Generator().manual_seed(0)
    tensors: dict[str, Any] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - not a mapping
                if not key.endswith("_proj.weight"):
                    continue
                outputs, inputs = weights.get_slice(key).get_shape()
                layer = f"base_model.model.{key.removesuffix('.weight')}"
                tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, inputs, generator=drawn) / inputs**0.5
                tensors[f"{layer}.lora_B.weight"] = 1e-3 * torch.randn(outputs, rank, generator=drawn)
    return tensors
