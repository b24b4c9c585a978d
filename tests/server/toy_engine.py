"""ToyEngine: the `Engine` protocol over bigram tables, in numpy.

A base model is a table of logits, next token given the last; an adapter is a table added to it;
an optimizer step is plain gradient descent. Small enough to check by hand, deterministic, and
honest: its logprobs are those of its tables. Keeps a record of the calls it gets.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinkerlite.types import (
    EMPTY_SLOT_LOGPROB,
    AdamParams,
    PromptAltTokens,
    SampledSequence,
    SampleResponse,
    StopReason,
    TensorData,
    TopkLogprobs,
)
from tinkerlite_server.engine.protocols import (
    AdapterConfig,
    ChatMessage,
    Floats,
    Ids,
    LossGraph,
    ModelInfo,
    SampledToken,
    SampleResult,
    SampleWork,
    TrainBatch,
    TrainOutput,
)
from tinkerlite_server.errors import BadRequest, NoRoom, ServerError, UnknownName

VOCAB = 11
MAX_CONTEXT = 32
END_OF_TEXT = 10
Table = NDArray[np.float64]

TEXTS = (b"a", b"b", b" c", b"d", b"\xc3", b"\xa9", b"e\n", b"f", b"gh", b"", b"<end>")
"""What each token says; 4 and 5 are the halves of an e with an accent, 9 says nothing."""


class ToyTokenizer:
    """Implements `Tokenizer`. A conversation is its contents, each behind an 8, with a 9 at the end."""

    def encode(self, text: str) -> list[int]:
        rest, tokens = text.encode(), []
        while rest:
            token = max((i for i in range(VOCAB) if TEXTS[i] and rest.startswith(TEXTS[i])), default=None)
            if token is None:
                raise BadRequest(f"{rest!r} is not in the vocabulary")
            tokens.append(token)
            rest = rest[len(TEXTS[token]) :]
        return tokens

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        if messages[0]["role"] == "assistant":
            raise BadRequest("a conversation does not begin with the assistant")
        return [token for message in messages for token in (8, *self.encode(message["content"]))] + [9]

    def token_bytes(self, token: int) -> bytes:
        return TEXTS[token]


@dataclass(eq=False)
class ToyRun:
    base_model: str
    adapter: AdapterConfig | None
    table: Table
    gradient: Table = field(default_factory=lambda: np.zeros((VOCAB, VOCAB)))
    steps: int = 0


@dataclass(frozen=True, eq=False)
class ToyProgram:
    """Any custom loss, which here is cross_entropy with weights of one."""

    graph: LossGraph


@dataclass(eq=False)
class _Running:
    work: SampleWork
    table: Table
    generators: list[np.random.Generator]
    tokens: list[list[int]]
    reasons: list[StopReason | None]


class ToyEngine:
    """Implements `Engine`.

    Args:
        names: base models; equal names have equal tables.
        folder: what the catalog says of tokenizer files.
    """

    def __init__(self, names: Sequence[str] = ("toy", "teacher"), folder: Path = Path()) -> None:
        self._catalog = {
            name: ModelInfo(
                name=name,
                arch="bigram",
                vocab_size=VOCAB,
                max_context=MAX_CONTEXT,
                eos_ids=(END_OF_TEXT,),
                dtype="float64",
                folder=folder,
                tokenizer_hash="0" * 64,
            )
            for name in names
        }
        self.calls: list[tuple[str, ...]] = []
        """What was asked, in order: (verb, model ids or keys ...)."""
        self.batches: list[TrainBatch] = []
        """What was trained on, in order."""
        self.failures: dict[str, Exception] = {}
        """A verb's next call raises this, once; "forward_backward of ID" makes one batch fail."""
        self.gate = threading.Event()
        """While clear, training calls wait: the engine is busy."""
        self.gate.set()
        self.most_adapters: int | None = None
        """As many fit in memory; None: any number."""
        self.entered = threading.Event()
        """Set once a training call has begun."""
        self._runs: dict[str, ToyRun] = {}
        self._adapters: dict[str, Table] = {}
        self._running: dict[str, _Running] = {}

    @property
    def catalog(self) -> Mapping[str, ModelInfo]:
        return self._catalog

    def tokenizer(self, base_model: str) -> ToyTokenizer:
        assert base_model in self._catalog
        return ToyTokenizer()

    def run(self, model_id: str) -> ToyRun:
        if model_id not in self._runs:
            raise UnknownName(f"no run {model_id!r}")
        return self._runs[model_id]

    def _called(self, verb: str, *what: str) -> None:
        self.calls.append((verb, *what))
        if verb in self.failures:
            raise self.failures.pop(verb)

    # ---- Trainer ----

    def create_run(self, model_id: str, base_model: str, adapter: AdapterConfig | None) -> None:
        self._called("create_run", model_id)
        if adapter is None:
            self._check_room()
        self._runs[model_id] = ToyRun(base_model, adapter, np.zeros((VOCAB, VOCAB)))

    def drop_run(self, model_id: str) -> None:
        self._called("drop_run", model_id)
        self._runs.pop(model_id, None)

    def forward_backward(self, batches: Sequence[TrainBatch]) -> list[TrainOutput | ServerError]:
        self.batches += batches
        self._called("forward_backward", *(batch.model_id for batch in batches))
        self.entered.set()
        self.gate.wait()
        return [self._one_batch(batch) for batch in batches]

    def _one_batch(self, batch: TrainBatch) -> TrainOutput | ServerError:
        failure = self.failures.pop(f"forward_backward of {batch.model_id}", None)
        if isinstance(failure, ServerError):
            return failure
        run = self.run(batch.model_id)
        table = base_table(run.base_model) + run.table
        logprobs, losses = [], []
        for example in batch.examples:
            shape = example.target_tokens.shape
            targets_NK = example.target_tokens.reshape(shape[0], -1)
            full_NV = log_softmax(table[example.tokens])
            lp = np.take_along_axis(full_NV, targets_NK, axis=-1).reshape(shape)
            weight = self._weight(batch.loss_fn, lp, example.inputs)
            logprobs.append(lp.astype(np.float32))
            is_linear = batch.loss_fn in ("cross_entropy", "custom")
            losses.append((-weight * (lp if is_linear else 1.0)).astype(np.float32))
            if not batch.forward_only:
                gap_NKV = np.exp(full_NV)[:, None, :] - np.eye(VOCAB)[targets_NK]
                slope_NV = (weight.reshape(targets_NK.shape)[..., None] * gap_NKV).sum(1)
                np.add.at(run.gradient, example.tokens, slope_NV)
        metrics = {"loss:sum": float(sum(loss.sum() for loss in losses))}
        return TrainOutput(logprobs, None if batch.program else losses, metrics)

    @staticmethod
    def _weight(loss_fn: str, lp: Table, inputs: Mapping[str, Floats | Ids]) -> Table:
        """The weight of each log-probability in the gradient."""
        if loss_fn == "custom":
            return np.ones_like(lp)
        if loss_fn == "cross_entropy":
            return inputs["weights"].astype(np.float64)
        return np.exp(lp - inputs["logprobs"]) * inputs["advantages"]

    def compile_loss(self, graph: LossGraph) -> ToyProgram:
        if graph.name == "broken":
            raise BadRequest("custom loss 'broken': node 'exp': no such operation")
        return ToyProgram(graph)

    def optim_step(self, model_id: str, params: AdamParams) -> dict[str, float]:
        self._called("optim_step", model_id)
        self.gate.wait()
        run = self.run(model_id)
        norm = float(np.linalg.norm(run.gradient))
        run.table = run.table - params.learning_rate * run.gradient
        run.gradient = np.zeros_like(run.gradient)
        run.steps += 1
        return {"grad_norm": norm, "step": float(run.steps)}

    def discard_gradients(self, model_id: str) -> None:
        self._called("discard_gradients", model_id)
        self.run(model_id).gradient[:] = 0

    def save_run(self, model_id: str, folder: Path, *, optimizer: bool) -> None:
        self._called("save_run", model_id)
        run = self.run(model_id)
        np.save(folder / "adapter.npy", run.table)
        state = {"adapter": run.adapter and run.adapter.__dict__, "steps": run.steps if optimizer else None}
        (folder / "state.json").write_text(json.dumps(state))

    def load_run(
        self, model_id: str, base_model: str, folder: Path, *, optimizer: bool
    ) -> AdapterConfig | None:
        self._called("load_run", model_id)
        state = json.loads((folder / "state.json").read_text())
        if optimizer and state["steps"] is None:
            raise BadRequest("no optimizer state in there")
        adapter = AdapterConfig(**state["adapter"]) if state["adapter"] else None
        steps = state["steps"] if optimizer else 0
        self._runs[model_id] = ToyRun(base_model, adapter, np.load(folder / "adapter.npy"), steps=steps)
        return adapter

    def snapshot(self, model_id: str, adapter_id: str) -> None:
        self._called("snapshot", model_id, adapter_id)
        self._check_room()
        self._adapters[adapter_id] = self.run(model_id).table.copy()

    def _check_room(self) -> None:
        if self.most_adapters is not None and len(self._adapters) >= self.most_adapters:
            raise NoRoom(f"{len(self._adapters)} adapters are there", freeable=tuple(self._adapters))

    # ---- Sampler ----

    def load_adapter(self, adapter_id: str, base_model: str, folder: Path) -> None:
        self._called("load_adapter", adapter_id)
        self._check_room()
        self._adapters[adapter_id] = np.load(folder / "adapter.npy")

    def drop_adapter(self, adapter_id: str) -> None:
        self._called("drop_adapter", adapter_id)
        self._adapters.pop(adapter_id, None)

    def has_adapter(self, adapter_id: str) -> bool:
        return adapter_id in self._adapters

    def submit(self, work: SampleWork) -> None:
        self._called("submit", work.key)
        table = base_table(work.base_model)
        if work.adapter_id is not None:
            table = table + self._adapters[work.adapter_id]
        self._running[work.key] = _Running(
            work,
            table,
            [np.random.default_rng(seed) for seed in work.seeds],
            [[] for _ in work.seeds],
            [None for _ in work.seeds],
        )

    def cancel(self, key: str) -> None:
        self._called("cancel", key)
        self._running.pop(key, None)

    def step(self) -> list[SampleResult | SampledToken]:
        self._called("step")
        new: list[SampleResult | SampledToken] = []
        for running in self._running.values():
            for index in range(running.work.num_samples):
                if running.reasons[index] is None:
                    _draw(running, index)
                    if running.work.stream:
                        new.append(_newest(running, index))
        done = [key for key, running in self._running.items() if all(running.reasons)]
        return new + [SampleResult(key, _response(self._running.pop(key))) for key in done]

    @property
    def has_work(self) -> bool:
        return bool(self._running)


def base_table(name: str) -> Table:
    """The logits of a base model: random, and the same wherever the name is the same."""
    seed = int.from_bytes(blake2b(name.encode(), digest_size=4).digest())
    return np.random.default_rng(seed).normal(size=(VOCAB, VOCAB))


def log_softmax(rows: Table) -> Table:
    return rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True)


def _draw(running: _Running, index: int) -> None:
    work, tokens = running.work, running.tokens[index]
    logits = running.table[tokens[-1] if tokens else int(work.prompt[-1])]
    if work.temperature == 0:
        token = int(logits.argmax())
    else:
        token = int(running.generators[index].choice(VOCAB, p=np.exp(log_softmax(logits / work.temperature))))
    tokens.append(token)
    text = b"".join(TEXTS[token] for token in tokens)
    if token in work.stop_ids or any(stop.encode() in text for stop in work.stop_strings):
        running.reasons[index] = "stop"
    elif len(tokens) == work.max_tokens:
        running.reasons[index] = "length"


def _newest(running: _Running, index: int) -> SampledToken:
    response = _response(running).sequences[index]
    assert response.logprobs is not None
    topk = response.topk_logprobs
    return SampledToken(
        running.work.key,
        index,
        response.tokens[-1],
        response.logprobs[-1],
        (topk[-1] or []) if topk else [],
        running.reasons[index],
    )


def _response(running: _Running) -> SampleResponse:
    work, full = running.work, log_softmax(running.table)
    sequences = []
    for tokens, reason in zip(running.tokens, running.reasons, strict=True):
        contexts = [int(work.prompt[-1]), *tokens[:-1]]
        sequences.append(
            SampledSequence(
                stop_reason="stop" if reason == "stop" else "length",
                tokens_np=np.array(tokens, np.int32),
                logprobs_np=full[contexts, tokens].astype(np.float32),
                topk_logprobs_np=_topk(full[contexts], work.topk_sample_logprobs),
            )
        )
    rows = full[work.prompt[:-1]]
    unscored = 0 if work.prompt_logprobs_last_n is None else len(rows) - work.prompt_logprobs_last_n
    scored = np.full(len(work.prompt), np.nan, np.float32)
    scored[unscored + 1 :] = full[work.prompt[:-1], work.prompt[1:]][unscored:]
    return SampleResponse(
        sequences=sequences,
        prompt_logprobs_np=scored if work.prompt_logprobs else None,
        topk_prompt_logprobs_np=_prompt_topk(rows, unscored, work.topk_prompt_logprobs),
        target_prompt_logprobs=_targets(rows, work.target_prompt_logprobs),
        prompt_alt_tokens=_alternatives(running.table[work.prompt[:-1]], rows, work),
    )


def _topk(rows: Table, k: int) -> TopkLogprobs | None:
    if k == 0:
        return None
    ids = np.argsort(-rows, axis=-1)[:, :k]
    return TopkLogprobs(ids.astype(np.int32), np.take_along_axis(rows, ids, -1).astype(np.float32))


def _prompt_topk(rows: Table, unscored: int, k: int) -> TopkLogprobs | None:
    topk = _topk(rows, k)
    if topk is None:
        return None
    topk.token_ids[:unscored], topk.logprobs[:unscored] = 0, EMPTY_SLOT_LOGPROB
    ids = np.concatenate([np.zeros((1, topk.token_ids.shape[1]), np.int32), topk.token_ids])
    unused = np.full((1, topk.token_ids.shape[1]), EMPTY_SLOT_LOGPROB, np.float32)
    return TopkLogprobs(ids, np.concatenate([unused, topk.logprobs]))


def _targets(rows: Table, targets: TensorData | None) -> TensorData | None:
    """Scored as a dense matrix, then laid out as it came: small enough for that here."""
    if targets is None:
        return None
    ids = targets.to_numpy(pad_value=-1)
    dense = np.where(ids >= 0, np.take_along_axis(rows, ids.clip(0), -1), 0.0).astype(np.float32)
    crow, columns = targets.sparse_crow_indices, targets.sparse_col_indices
    if crow is None or columns is None:
        return TensorData(dense)
    listed = dense[np.repeat(np.arange(len(dense)), np.diff(crow)), columns]
    return TensorData(listed, "float32", targets.shape, crow, columns)


def _alternatives(logits: Table, rows: Table, work: SampleWork) -> PromptAltTokens | None:
    if work.prompt_alt_tokens_k == 0:
        return None
    random = np.random.default_rng(work.prompt_seed)
    shape = (len(rows), work.prompt_alt_tokens_k)
    if work.temperature == 0:
        tokens = np.broadcast_to(logits.argmax(-1)[:, None], shape)
    else:
        chances = np.exp(log_softmax(logits / work.temperature))
        tokens = np.array([random.choice(VOCAB, shape[1], p=each) for each in chances]).reshape(shape)
    logprobs = np.take_along_axis(rows, tokens, -1).astype(np.float32)
    return PromptAltTokens(TensorData(tokens), TensorData(logprobs))
