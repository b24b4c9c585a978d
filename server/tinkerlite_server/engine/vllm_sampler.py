"""VllmSampler: completions from vLLM, everything else from the PyTorch sampler beside it.

What a request asks about its prompt is read off PyTorch's forward pass, the trainer's own: exact,
shared prefixes once, and it has all that the protocol asks for. Its completions come from vLLM, if
vLLM can make them (`_takes`); if not, from PyTorch too. A request may have both, and then has one
answer made of two.

Every adapter is in both places. vLLM reads its copy from a folder in PEFT's layout, in memory
where the machine has such folders; an adapter that vLLM cannot apply is PyTorch's alone, which is
said in the log. So is a model whose vLLM has ended: requests under way fail, later ones do not.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from tinkerlite.types import SampleResponse
from tinkerlite_server.engine.adapter_files import write_adapter
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.batcher import as_server_error
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.model_pool import ModelPool
from tinkerlite_server.engine.protocols import AdapterConfig, SampledToken, SampleResult, SampleWork
from tinkerlite_server.engine.sampler import LocalSampler
from tinkerlite_server.engine.samples import Job, Sample
from tinkerlite_server.engine.scoring import NOTHING_ASKED
from tinkerlite_server.engine.stops import StopRule, StopStrings
from tinkerlite_server.engine.vllm_process import AdapterRequest, Message, VllmEnded, VllmProcess
from tinkerlite_server.errors import EngineFailure, ServerError

logger = logging.getLogger(__name__)

_TEMPERATURES = (0.01, 2.0)
"""What vLLM takes besides 0; it would change a lower one, and refuses a higher one."""


@dataclass(eq=False, kw_only=True)
class VllmModel:
    """One base model in vLLM."""

    process: VllmProcess | None
    """None once it has ended."""
    longest: int
    """Tokens of prompt and completion at most."""
    max_rank: int
    adapts_unembedding: bool = True
    """Whether it applies adapters of the unembedding, which depends on the architecture."""
    running: dict[str, tuple[_Request, Sample]] = field(default_factory=dict)
    """By request id, which is of one sample."""

    def leaves_out(self, config: AdapterConfig | None) -> str | None:
        """In words, which weights vLLM does not sample from, if these are such; else None."""
        if config is None:
            return "runs that train all weights: vLLM swaps adapters alone"
        if config.rank > self.max_rank:
            return (
                f"adapters of rank {config.rank}: vLLM was started for ranks up to {self.max_rank} "
                "(--vllm max_lora_rank=N)"
            )
        if config.train_unembed and not self.adapts_unembedding:
            return (
                "adapters of the unembedding, which vLLM does not apply here: create runs with "
                "train_unembed=False to have them sampled by vLLM"
            )
        return None


@dataclass(eq=False)
class _Loaded:
    """An adapter in vLLM."""

    model: VllmModel
    request: AdapterRequest
    users: int = 0
    """Requests that sample from it."""
    dropped: bool = False


@dataclass(eq=False)
class _Request:
    """A request whose completions vLLM makes."""

    job: Job
    model: VllmModel
    adapter: _Loaded | None
    asks: bool
    """Whether PyTorch answers about its prompt."""
    scored: SampleResponse | None = None
    sampled: SampleResponse | None = None


class VllmSampler:
    """Implements `Sampler`.

    Args:
        local: samples and scores with PyTorch, over the models of `pool`.
        models: by name; others are `local`'s alone.
    """

    def __init__(self, pool: ModelPool, local: LocalSampler, models: Mapping[str, VllmModel]) -> None:
        self._pool = pool
        self._local = local
        self._models = models
        self._loaded: dict[str, _Loaded] = {}
        """By adapter id."""
        self._requests: dict[str, _Request] = {}
        """By key."""
        self._results: list[SampleResult | SampledToken] = []
        self._serial = itertools.count(1)
        self._said: set[str] = set()

    # ---- adapters ----

    def add_adapter(self, adapter_id: str, base_model: str, adapter: Adapter | BaseModel) -> None:
        """Make weights in memory available; requests already submitted keep the one they had."""
        refusal = self.offer_adapter(adapter_id, base_model, adapter)
        if refusal is not None:
            self._tell(f"{base_model}: the PyTorch sampler serves {refusal}")

    def offer_adapter(self, adapter_id: str, base_model: str, adapter: Adapter | BaseModel) -> str | None:
        """Do so; in words what is PyTorch's alone, and why, or None."""
        self._let_go_of(adapter_id)
        self._local.add_adapter(adapter_id, base_model, adapter)
        model = self._models.get(base_model)
        if model is None or model.process is None:
            return None
        if isinstance(adapter, BaseModel):
            return model.leaves_out(None)
        if left_out := model.leaves_out(adapter.config):
            return left_out
        number = next(self._serial)
        folder = model.process.scratch / str(number)
        tensors = {path: (pair.a, pair.b) for path, pair in adapter.pairs.items()}
        # A name of its own: vLLM keeps what it computed of prompts by the adapter's name.
        request = (number, f"{adapter_id}#{number}", str(folder))
        try:
            folder.mkdir()
            write_adapter(folder, tensors, adapter.config, base_model)
            refusal = model.process.load(request)
        except VllmEnded as ended:
            self._ended(model, ended)
            refusal = "it has ended"
        except (OSError, SafetensorError) as error:
            refusal = f"its copy cannot be written ({error})"
        if refusal is None:
            self._loaded[adapter_id] = _Loaded(model, request)
            return None
        shutil.rmtree(folder, ignore_errors=True)
        return f"sampler weights {adapter_id!r}, which vLLM does not take: {refusal}"

    def load_adapter(self, adapter_id: str, base_model: str, folder: Path) -> None:
        """Make a saved adapter, or a whole model, available under this id.

        Raises:
            BadRequest: it does not fit the base model, or is neither.
        """
        self.add_adapter(adapter_id, base_model, self._local.read_weights(base_model, folder))

    def drop_adapter(self, adapter_id: str) -> None:
        """Free an adapter once no submitted work uses it; unknown ids are ignored."""
        self._local.drop_adapter(adapter_id)
        self._let_go_of(adapter_id)

    def has_adapter(self, adapter_id: str) -> bool:
        """Whether `add_adapter` or `load_adapter` made it available."""
        return self._local.has_adapter(adapter_id)

    @property
    def full_ids(self) -> tuple[str, ...]:
        """Ids of weights that are whole models."""
        return self._local.full_ids

    @property
    def full_bytes(self) -> int:
        """What whole models take in the PyTorch sampler."""
        return self._local.full_bytes

    def announce(self, base_model: str, config: AdapterConfig | None) -> None:
        """A run begins: if vLLM will not sample from it, the log says so now."""
        model = self._models.get(base_model)
        left_out = None if model is None else model.leaves_out(config)
        if left_out is not None:
            self._tell(f"{base_model}: the PyTorch sampler serves {left_out}")

    def _let_go_of(self, adapter_id: str) -> None:
        loaded = self._loaded.pop(adapter_id, None)
        if loaded is not None:
            loaded.dropped = True
            self._free_if_unused(loaded)

    def _free_if_unused(self, loaded: _Loaded) -> None:
        if not loaded.dropped or loaded.users:
            return
        shutil.rmtree(loaded.request[2], ignore_errors=True)
        if loaded.model.process is not None:
            try:
                loaded.model.process.drop(loaded.request[0])
            except VllmEnded as ended:
                self._ended(loaded.model, ended)

    # ---- requests ----

    def submit(self, work: SampleWork) -> None:
        """Queue work. What it gets wrong comes back as its result."""
        model = self._models.get(work.base_model)
        if model is None or not self._takes(work, model):
            self._local.submit(work)
            return
        try:
            self._begin(work, model)
        except VllmEnded as ended:
            self._ended(model, ended)
        except Exception as error:  # noqa: BLE001 - recorded as this request's failure; others go on
            self._fail(work.key, as_server_error(error, "preparing to sample"))

    def _takes(self, work: SampleWork, model: VllmModel) -> bool:
        """Whether vLLM makes this request's completions."""
        if model.process is None or (work.max_tokens == 1 and _asks_about_prompt(work)):
            return False
        if work.adapter_id is not None:
            loaded = self._loaded.get(work.adapter_id)
            if loaded is None or loaded.model is not model:
                return False
        low, high = _TEMPERATURES
        if work.temperature != 0 and not low <= work.temperature <= high:
            return False
        return len(work.prompt) + work.max_tokens <= model.longest

    def _begin(self, work: SampleWork, model: VllmModel) -> None:
        assert model.process is not None
        strings = None
        if work.stop_strings:
            strings = StopStrings(work.stop_strings, self._pool.tokenizer(work.base_model))
        stop = StopRule(max_tokens=work.max_tokens, stop_ids=work.stop_ids, strings=strings)
        job = Job(work, None, stop)
        job.take_prompt(None, NOTHING_ASKED)
        loaded = None if work.adapter_id is None else self._loaded[work.adapter_id]
        request = _Request(job, model, loaded, _asks_about_prompt(work))
        self._requests[work.key] = request
        if loaded is not None:
            loaded.users += 1
        if request.asks:
            self._local.submit(_about_the_prompt(work))
        prompt, fields = work.prompt.tolist(), _sampling_fields(work)
        for sample in job.start(work.num_samples):
            request_id = str(next(self._serial))
            model.running[request_id] = request, sample
            model.process.add(
                request_id,
                prompt,
                {**fields, "seed": work.seeds[sample.index]},
                None if loaded is None else loaded.request,
            )

    def cancel(self, key: str) -> None:
        """Forget work; it yields no result. Unknown keys are ignored."""
        self._local.cancel(key)
        self._results = [result for result in self._results if result.key != key]
        self._end(key)

    def step(self) -> list[SampleResult | SampledToken]:
        """One step of everything that has work; new tokens to report, and what finished."""
        if self._local.has_work:
            for result in self._local.step():
                self._take_local(result)
        for model in self._models.values():
            if model.running and model.process is not None:
                try:
                    self._take(model, model.process.step())
                except VllmEnded as ended:
                    self._ended(model, ended)
        results, self._results = self._results, []
        return results

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._results or self._requests) or self._local.has_work

    # ---- what comes ----

    def _take_local(self, result: SampleResult | SampledToken) -> None:
        request = self._requests.get(result.key)
        if request is None or isinstance(result, SampledToken):
            self._results.append(result)
        elif isinstance(result.outcome, ServerError):
            self._fail(result.key, result.outcome)
        else:
            request.scored = result.outcome
            self._answer_if_complete(request)

    def _take(self, model: VllmModel, message: Message) -> None:
        word, *values = message
        if word == "refused":
            request_id, why = values
            if request_id in model.running:
                request, _ = model.running[request_id]
                self._fail(request.job.work.key, EngineFailure(f"vLLM refused the request: {why}"))
            return
        [made] = values
        for request_id, tokens, logprobs, likeliest, ended in made:
            if request_id not in model.running:  # it was given up since
                continue
            request, sample = model.running[request_id]
            try:
                self._extend(request, sample, request_id, tokens, logprobs, likeliest, ended)
            except VllmEnded:
                raise
            except Exception as error:  # noqa: BLE001 - recorded as this request's failure; others go on
                self._fail(request.job.work.key, as_server_error(error, "sampling"))

    def _extend(
        self,
        request: _Request,
        sample: Sample,
        request_id: str,
        tokens: list[int],
        logprobs: list[float],
        likeliest: list[tuple[list[int], list[float]]],
        ended: str | None,
    ) -> None:
        """Append what vLLM made to a sample."""
        work = request.job.work
        for token, logprob, (ids, values) in zip(tokens, logprobs, likeliest, strict=True):
            reason = sample.add(token, logprob)
            if work.topk_sample_logprobs:
                sample.add_topk(np.array(ids, np.int64), np.array(values, np.float32))
            if work.stream:
                self._results.append(sample.newest(reason))
            if reason is None:
                continue
            del request.model.running[request_id]
            if ended is None and request.model.process is not None:  # a stop string, which we look for
                request.model.process.abort([request_id])
            request.sampled = request.job.finish(sample, reason)
            self._answer_if_complete(request)
            return
        if ended is not None:
            raise EngineFailure(f"vLLM ended a sample after {len(sample.tokens)} tokens, saying {ended!r}")

    def _answer_if_complete(self, request: _Request) -> None:
        response = request.sampled
        if response is None or (request.asks and request.scored is None):
            return
        if (scored := request.scored) is not None:
            response = replace(
                response,
                prompt_logprobs_np=scored.prompt_logprobs_np,
                topk_prompt_logprobs_np=scored.topk_prompt_logprobs_np,
                target_prompt_logprobs=scored.target_prompt_logprobs,
                prompt_alt_tokens=scored.prompt_alt_tokens,
            )
        key = request.job.work.key
        self._end(key)
        self._results.append(SampleResult(key, response))

    # ---- endings ----

    def _fail(self, key: str, error: ServerError) -> None:
        self._local.cancel(key)
        self._end(key)
        self._results.append(SampleResult(key, error))

    def _end(self, key: str) -> None:
        """Forget a request and what vLLM still has of it."""
        request = self._requests.pop(key, None)
        if request is None:
            return
        model = request.model
        left = [request_id for request_id, (of, _) in model.running.items() if of is request]
        for request_id in left:
            del model.running[request_id]
        if left and model.process is not None:
            with contextlib.suppress(VllmEnded):  # then the next step says so
                model.process.abort(left)
        if request.adapter is not None:
            request.adapter.users -= 1
            self._free_if_unused(request.adapter)

    def _ended(self, model: VllmModel, error: VllmEnded) -> None:
        """vLLM is gone: what it had under way fails, and PyTorch samples from here on."""
        logger.error("%s. The PyTorch sampler goes on in its place, until the server is restarted", error)
        process, model.process = model.process, None
        if process is not None:
            process.close()
        for key in [key for key, request in self._requests.items() if request.model is model]:
            self._fail(key, error)
        for adapter_id in [name for name, loaded in self._loaded.items() if loaded.model is model]:
            self._let_go_of(adapter_id)

    def close(self) -> None:
        """End vLLM's processes."""
        for model in self._models.values():
            if model.process is not None:
                model.process.close()

    def _tell(self, what: str) -> None:
        """Into the log, once."""
        if what not in self._said:
            self._said.add(what)
            logger.warning("%s", what)


def _asks_about_prompt(work: SampleWork) -> bool:
    return bool(
        work.prompt_logprobs
        or work.topk_prompt_logprobs
        or work.target_prompt_logprobs is not None
        or work.prompt_alt_tokens_k
    )


def _about_the_prompt(work: SampleWork) -> SampleWork:
    """The same questions about the prompt, and one token that nobody looks at."""
    return replace(
        work,
        num_samples=1,
        seeds=work.seeds[:1],
        max_tokens=1,
        stop_ids=frozenset(),
        stop_strings=(),
        topk_sample_logprobs=0,
        stream=False,
    )


def _sampling_fields(work: SampleWork) -> dict[str, Any]:
    """vLLM's `SamplingParams`, all but the seed."""
    return {
        "max_tokens": work.max_tokens,
        "temperature": work.temperature,
        "top_k": work.top_k,
        "top_p": work.top_p,
        "stop_token_ids": sorted(work.stop_ids),
        "logprobs": work.topk_sample_logprobs,
    }
