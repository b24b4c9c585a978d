"""Continuous batching over one base model: requests join and leave between steps.

A step reads some waiting prompts in one packed pass, then makes one token for every running
sample. Requests are served first come, first served: one that needs slots waits until there is
room, and none that needs slots overtakes it; those that only score, or want a single token, need
none and go along with the next pass. A request with more samples than there is room for
starts them in parts, its prompt read once.

Decoding pauses only while there is both room and a prompt to fill it: a step of a half-empty
batch costs nearly as much as one of a full batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.draws import Drawn, draw_tokens
from tinkerlite_server.engine.lora import Adapter, AdapterRows, adapter_rows
from tinkerlite_server.engine.prefix_cache import PrefixCache, Weights
from tinkerlite_server.engine.prompts import Prompt, PromptState, choose_prompts, read_prompts
from tinkerlite_server.engine.protocols import EngineLimits, SampledToken, SampleResult
from tinkerlite_server.engine.samples import Job, Sample
from tinkerlite_server.engine.scoring import unasked_tokens
from tinkerlite_server.engine.slot_cache import DecodeStream, SlotCache
from tinkerlite_server.errors import EngineFailure, ServerError

logger = logging.getLogger(__name__)

_MOST_CONSIDERED = 512
"""Oldest waiting requests among which the next pass is chosen: sorting them by prefix is not free."""


class Batcher:
    """The requests of one base model. `step` never raises for a request: it reports."""

    def __init__(self, model: BaseModel, limits: EngineLimits, prefixes: PrefixCache) -> None:
        self._model = model
        self._limits = limits
        self._prefixes = prefixes
        self._cache = SlotCache(model, limits.max_slots, limits.max_cache_bytes)
        self._waiting: dict[str, Job] = {}
        """By key, oldest first: requests with samples that have not started."""
        self._running: list[Sample] = []
        """By slot."""
        self._results: list[SampleResult | SampledToken] = []
        self._newest: Adapter | None = None

    @property
    def model(self) -> BaseModel:
        """What it samples from."""
        return self._model

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._waiting or self._running or self._results)

    def submit(self, job: Job) -> None:
        """Queue a request."""
        self._newest = job.adapter or self._newest
        job.past = self._prefixes.find(self._weights(job), job.work.prompt, unasked_tokens(job.work))
        self._waiting[job.work.key] = job

    def rest(self) -> None:
        """There is no more work: of all adapters, what is made of the newest stays, as it may come again."""
        self._model.forget_factors(self._newest)

    @torch.inference_mode()
    def cancel(self, key: str) -> None:
        """Forget a request, its running samples included."""
        self._waiting.pop(key, None)
        self._release([slot for slot, sample in enumerate(self._running) if sample.job.work.key == key])

    @torch.inference_mode()
    def step(self) -> list[SampleResult | SampledToken]:
        """One pass over prompts if any can be read, then one token for every running sample."""
        self._start_what_fits()
        if not any(job.decodes for job, _ in self._admissible()):
            self._decode()
        results, self._results = self._results, []
        return results

    # ---- admission ----

    def _admissible(self) -> list[tuple[Job, int]]:
        """Waiting requests that may start now, oldest first, and how many samples of each."""
        taken = len(self._running)
        longest = max((sample.job.longest for sample in self._running), default=0)
        blocked = False
        admissible: list[tuple[Job, int]] = []
        for job in self._waiting.values():
            if len(admissible) == _MOST_CONSIDERED:
                break
            if not job.decodes:
                admissible.append((job, job.unstarted))
                continue
            if blocked:
                continue
            room = self._cache.most_samples(max(longest, job.longest)) - taken
            count = min(job.unstarted, max(room, 0))
            blocked = count < job.unstarted
            if count:
                longest = max(longest, job.longest)
                taken += count
                admissible.append((job, count))
        return admissible

    def _start_what_fits(self) -> None:
        admissible = self._admissible()
        if not admissible:
            return
        ready = [(job, count) for job, count in admissible if job.prompt is not None]
        unread = [(job, count) for job, count in admissible if job.prompt is None]
        chosen = choose_prompts(
            [job.work.prompt for job, _ in unread],
            [job.adapter for job, _ in unread],
            {index: job.past.tokens for index, (job, _) in enumerate(unread) if job.past is not None},
            self._limits.max_score_tokens,
        )
        to_read = [unread[i] for i in chosen]
        self._read([job for job, _ in to_read])
        self._start([(job, count) for job, count in (*ready, *to_read) if job.prompt is not None])

    def _read(self, jobs: Sequence[Job]) -> None:
        """Read the prompts of these requests, equal ones once; if that fails, one request at a time."""
        if not jobs:
            return
        alike: dict[tuple[int, bytes], list[Job]] = {}
        for job in jobs:
            alike.setdefault((id(job.adapter), job.work.prompt.tobytes()), []).append(job)
        read = None
        try:
            prompts = [_merged(group) for group in alike.values()]
            read = read_prompts(self._model, prompts, self._limits.head_chunk)
        except Exception as error:  # noqa: BLE001 - recorded as this request's failure; others go on
            if len(jobs) == 1 and jobs[0].past is None:
                self._fail(jobs[0], as_server_error(error, "reading the prompt"))
                return
        if read is None:  # by now nothing holds on to the memory of the pass that failed
            for job in jobs:
                job.past = None  # a prompt that is read whole needs no mask
                self._read([job])
            return
        for group, prompt in zip(alike.values(), read, strict=True):
            for job, scores in zip(group, prompt.scores, strict=True):
                try:
                    job.take_prompt(prompt.state, scores)
                except EngineFailure as error:
                    self._fail(job, error)

    def _start(self, admitted: Sequence[tuple[Job, int]]) -> None:
        """Draw first tokens; samples that go on get a slot each."""
        samples = [sample for job, count in admitted for sample in job.start(count)]
        if not samples:
            return
        try:
            hidden = torch.stack([_state(sample).last_hidden_E for sample in samples])
            goes_on = self._draw(samples, hidden)
            self._occupy([sample for sample, on in zip(samples, goes_on, strict=True) if on])
        except Exception as error:  # noqa: BLE001 - recorded as these requests' failure; others go on
            for job, _ in admitted:
                self._fail(job, as_server_error(error, "starting samples"))
        for job, _ in admitted:
            if not job.unstarted:
                self._waiting.pop(job.work.key, None)
                job.prompt = None

    def _occupy(self, samples: Sequence[Sample]) -> None:
        """Give each sample the next slot, with its prompt's keys and values in it."""
        if not samples:
            return
        lengths = [sample.length for sample in (*self._running, *samples)]
        self._cache.reserve(len(lengths), max(lengths))
        for _, group in groupby(samples, key=lambda sample: id(sample.job)):
            members = list(group)
            state = _state(members[0])
            if state.keys_values is None:
                raise EngineFailure("the prompt's keys and values were not kept: a defect of the batcher")
            self._cache.write_prompt(len(self._running), len(members), state.keys_values)
            self._running.extend(members)

    # ---- decoding ----

    def _decode(self) -> None:
        """One token for every running sample."""
        running = list(self._running)
        if not running:
            return
        try:
            lengths = [sample.length for sample in running]
            self._cache.reserve(len(running), max(lengths))
            stream = DecodeStream(
                self._cache,
                [sample.tokens[-1] for sample in running],
                [length - 1 for length in lengths],
                _rows_by_adapter(running, self._model.device),
            )
            goes_on = self._draw(running, self._model.hidden(stream))
        except Exception as error:  # noqa: BLE001 - recorded as these requests' failure; others go on
            for sample in running:
                self._fail(sample.job, as_server_error(error, "decoding"))
            return
        ended = {id(sample) for sample, on in zip(running, goes_on, strict=True) if not on}
        slots = [slot for slot, sample in enumerate(self._running) if id(sample) in ended]
        for slot in slots:
            self._remember(slot)
        self._release(slots)

    def _remember(self, slot: int) -> None:
        """Keep a finished conversation. Those of requests for several samples are not likely to go on."""
        sample = self._running[slot]
        job = sample.job
        if job.work.num_samples > 1:
            return
        # The last token was drawn, and has not been read.
        tokens = np.concatenate([job.work.prompt, np.array(sample.tokens[:-1], np.int64)])
        try:
            if self._prefixes.make_room(self._cache.bytes_of(len(tokens))):
                kept = self._cache.read(slot, len(tokens))
                self._prefixes.keep(self._weights(job), tokens, len(job.work.prompt), kept)
        except Exception:
            self._prefixes.clear()
            logger.exception("finished conversations were let go; their next turns are read whole")

    def _weights(self, job: Job) -> Weights:
        return job.adapter or self._model

    def _draw(self, samples: Sequence[Sample], hidden_BE: Tensor) -> list[bool]:
        """Draw a token for each sample from its hidden row; which of them go on."""
        goes_on: list[bool] = []
        for start in range(0, len(samples), self._limits.head_chunk):
            part = samples[start : start + self._limits.head_chunk]
            logits_BV = self._model.logits(
                hidden_BE[start : start + len(part)], _rows_by_adapter(part, self._model.device)
            )
            drawn = draw_tokens(
                logits_BV,
                [sample.rule for sample in part],
                np.array([sample.uniform() for sample in part]),
                max(sample.job.work.topk_sample_logprobs for sample in part),
            )
            goes_on += self._record(part, drawn)
        # A job may have failed with a later sample than this one.
        return [on and not sample.job.closed for sample, on in zip(samples, goes_on, strict=True)]

    def _record(self, samples: Sequence[Sample], drawn: Drawn) -> list[bool]:
        """Append each sample's token, and report the requests that this completes; which samples go on."""
        tokens, logprobs = drawn.tokens_B.tolist(), drawn.logprobs_B.tolist()
        topk = None
        if drawn.topk_ids_BK is not None and drawn.topk_logprobs_BK is not None:
            topk = drawn.topk_ids_BK.cpu().numpy(), drawn.topk_logprobs_BK.cpu().numpy()
        goes_on: list[bool] = []
        for row, sample in enumerate(samples):
            job = sample.job
            goes_on.append(False)
            if job.closed:
                continue
            try:
                reason = sample.add(tokens[row], logprobs[row])
            except Exception as error:  # noqa: BLE001 - recorded as this request's failure; others go on
                self._fail(job, as_server_error(error, "sampling"))
                continue
            if topk is not None and job.work.topk_sample_logprobs:
                sample.add_topk(topk[0][row], topk[1][row])
            if job.work.stream:
                self._results.append(sample.newest(reason))
            goes_on[row] = reason is None
            if reason is not None:
                response = job.finish(sample, reason)
                if response is not None:
                    self._results.append(SampleResult(job.work.key, response))
        return goes_on

    # ---- endings ----

    def _release(self, slots: Sequence[int]) -> None:
        """Free slots: the last running sample moves into each."""
        for slot in sorted(slots, reverse=True):
            last = self._running.pop()
            if slot < len(self._running):
                # At most one more than the cache holds of it: its newest token may not be there yet.
                self._cache.move(len(self._running), slot, last.length)
                self._running[slot] = last

    def _fail(self, job: Job, error: ServerError) -> None:
        """End a request with an error, and free what it holds."""
        if not job.closed:
            job.closed = True
            self._results.append(SampleResult(job.work.key, error))
        job.prompt = None
        self._waiting.pop(job.work.key, None)
        slots = [slot for slot, sample in enumerate(self._running) if sample.job is job]
        for slot in slots:
            self._cache.clear(slot)
        self._release(slots)


def as_server_error(error: Exception, doing: str) -> ServerError:
    """Errors of the request pass as they are; any other is an engine's failure."""
    if isinstance(error, ServerError):
        return error
    return EngineFailure(f"{doing} failed: {type(error).__name__}: {error}")


def _state(sample: Sample) -> PromptState:
    state = sample.job.prompt
    if state is None:
        raise EngineFailure("a sample started before its prompt was read: a defect of the batcher")
    return state


def _merged(jobs: Sequence[Job]) -> Prompt:
    """The prompt that these requests have in common."""
    pasts = [job.past for job in jobs if job.past is not None]
    return Prompt(
        tokens=jobs[0].work.prompt,
        adapter=jobs[0].adapter,
        keep=any(job.decodes for job in jobs),
        works=[job.work for job in jobs],
        # What one of them asks about has to be read for all.
        past=min(pasts, key=lambda past: past.tokens) if len(pasts) == len(jobs) else None,
    )


def _rows_by_adapter(samples: Sequence[Sample], device: torch.device) -> list[AdapterRows]:
    """Row b belongs to sample b."""
    runs = groupby((sample.job.adapter for sample in samples), key=id)
    return adapter_rows([_run(list(group)) for _, group in runs], device)


def _run(alike: list[Adapter | None]) -> tuple[Adapter | None, int]:
    return alike[0], len(alike)
