"""What the scheduler asks of an engine: two small protocols over plain arrays.

`LocalEngine` (PyTorch, in this process) implements both; another sampler, or an engine on
another machine, implements one of them. Knows neither torch nor HTTP.

An engine is not thread-safe: one thread, the scheduler's, makes every call except
`catalog`, `tokenizer` and `compile_loss`, which change nothing and are safe from anywhere.

Arrays are numpy; logprobs are float32, natural, untempered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from tinkerlite.types import AdamParams, SampleResponse, StopReason, TensorData
from tinkerlite_server.errors import ServerError

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is known of a base model without loading its weights."""

    name: str
    arch: str
    vocab_size: int
    """Token ids must be below this (the rows of the embedding)."""
    max_context: int
    eos_ids: tuple[int, ...]
    """Tokens that stop a completion when the request names no stops."""
    dtype: str
    folder: Path
    """Holds config, weights and tokenizer, as transformers lays them out."""
    tokenizer_hash: str
    """SHA-256 of the sorted token-to-id map."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """A LoRA adapter: scale = alpha / rank, B starts at zero."""

    rank: int
    alpha: float
    seed: int
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True


# ---- training ----


@dataclass(frozen=True, eq=False)
class Example:
    """One datum, validated: ids in range, lengths equal, numbers finite."""

    tokens: Ids
    """(N,)."""
    target_tokens: Ids
    """(N,) or, for cross_entropy and custom losses, (N, K)."""
    inputs: Mapping[str, Floats | Ids]
    """The loss's other inputs by name: float32, each shaped like `target_tokens`. Those of a custom
    loss may be int64, and of any shape of the rank that it declares."""


# ---- custom losses ----


@dataclass(frozen=True, kw_only=True)
class LossInput:
    """An input of a custom loss: `logprobs`, or what each datum has under this name."""

    name: str
    rank: Literal[0, 1, 2]


@dataclass(frozen=True, kw_only=True)
class LossNode:
    """One step of a traced function, as it came: nothing in it is trusted.

    `args` and `kwargs` are JSON: scalars and lists stand for themselves, `{"ref": name}` for an
    earlier node, and other one-key objects for what JSON lacks (tuples, slices, dtypes, ...).
    """

    op: str
    name: str
    target: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=lambda: {})


@dataclass(frozen=True, kw_only=True)
class LossGraph:
    """A caller's loss of one datum: (logprobs, *inputs) -> (loss, metrics), step by step."""

    loss_id: str
    name: str
    """The function's; for messages."""
    inputs: Sequence[LossInput]
    """`logprobs` first."""
    nodes: Sequence[LossNode]


class LossProgram(Protocol):
    """A graph that an engine has checked, in the form in which it runs it."""

    @property
    def graph(self) -> LossGraph:
        """What it was made of."""
        ...


# ---- batches ----


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainBatch:
    """One forward_backward request."""

    model_id: str
    examples: Sequence[Example]
    loss_fn: str
    loss_config: Mapping[str, float]
    forward_only: bool = False
    program: LossProgram | None = None
    """The loss itself, where `loss_fn` is "custom"."""


@dataclass(frozen=True, eq=False)
class TrainOutput:
    """Per example, in order: arrays shaped like its targets. `metrics` has at least `loss:sum`."""

    logprobs: list[Floats]
    elementwise_loss: list[Floats] | None
    """None for a custom loss, which is one number a datum and no sum over positions."""
    metrics: dict[str, float]


class Trainer(Protocol):
    """Makes gradients. Runs are named by model id; many share one base model."""

    def create_run(self, model_id: str, base_model: str, adapter: AdapterConfig | None) -> None:
        """A fresh adapter, or (None) a copy of all weights to train, and fresh optimizer state.

        Raises:
            NoRoom: a copy of all weights, and what training them takes, does not fit in memory.
        """
        ...

    def drop_run(self, model_id: str) -> None:
        """Free a run; unknown ids are ignored."""
        ...

    def forward_backward(self, batches: Sequence[TrainBatch]) -> list[TrainOutput | ServerError]:
        """Run batches of *different* runs on one base model in merged passes.

        Gradients are added to each run's accumulator unless `forward_only`. A batch that
        fails yields its error and leaves its run's gradients as they were.
        """
        ...

    def compile_loss(self, graph: LossGraph) -> LossProgram:
        """Check a custom loss and make it ready to run. Safe from any thread: it changes nothing.

        Raises:
            BadRequest: naming the node and the operation that is wrong.
        """
        ...

    def optim_step(self, model_id: str, params: AdamParams) -> dict[str, float]:
        """AdamW on the accumulated gradients, then zero them. Returns figures (`grad_norm`, ...)."""
        ...

    def discard_gradients(self, model_id: str) -> None:
        """Zero the accumulated gradients without a step: part of what they should hold was lost."""
        ...

    def save_run(self, model_id: str, folder: Path, *, optimizer: bool) -> None:
        """Write the weights and, if asked, optimizer state into an existing empty folder.

        An adapter in PEFT's layout; all weights as a folder that transformers loads, tokenizer included.
        """
        ...

    def load_run(
        self, model_id: str, base_model: str, folder: Path, *, optimizer: bool
    ) -> AdapterConfig | None:
        """Create the run from a folder that `save_run` wrote; without `optimizer` its state is fresh.

        A run of this id that exists is replaced, and only once loading has succeeded. Returns what the
        run trains, as for `create_run`.

        Raises:
            NoRoom: as for `create_run`.
        """
        ...

    def snapshot(self, model_id: str, adapter_id: str) -> None:
        """Copy the run's weights to the sampler under `adapter_id`; later steps do not change the copy.

        Raises:
            NoRoom: they are a whole model's, and another copy does not fit in memory.
        """
        ...


# ---- sampling ----


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleWork:
    """One sample request, validated."""

    key: str
    """Names the work in `step`'s results."""
    base_model: str
    adapter_id: str | None
    prompt: Ids
    num_samples: int
    max_tokens: int
    """Already cut to the context limit."""
    seeds: tuple[int, ...]
    """One per sample: each draws from its own generator."""
    temperature: float
    top_k: int
    """0 is off."""
    top_p: float
    stop_ids: frozenset[int]
    """Sampling any of these ends the sample with reason "stop"; the token is kept."""
    stop_strings: tuple[str, ...] = ()
    topk_sample_logprobs: int = 0
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    prompt_logprobs_last_n: int | None = None
    """Score and rank the last n positions alone, 1 to P-1; those before are NaN, or empty rows."""
    target_prompt_logprobs: TensorData | None = None
    """int64 (P-1, K), dense or CSR: ids to score at each position after the first; -1 asks for nothing."""
    prompt_alt_tokens_k: int = 0
    """Draw this many tokens at each position after the first: independently, at the temperature, from
    the whole distribution."""
    prompt_seed: int = 0
    """What these are drawn from."""
    stream: bool = False
    """Also report every token in the step that makes it."""


@dataclass(frozen=True, eq=False)
class SampledToken:
    """A new token of a SampleWork that streams."""

    key: str
    index: int
    """Of the sample, below `num_samples`."""
    token: int
    logprob: float
    topk: list[tuple[int, float]]
    """The likeliest ids and their logprobs, as many as `topk_sample_logprobs` asks."""
    stop_reason: StopReason | None
    """Why this token ends its sample; None if the sample goes on."""


@dataclass(frozen=True, eq=False)
class SampleResult:
    """A finished SampleWork: a response, or the error that ended it."""

    key: str
    outcome: SampleResponse | ServerError


class Sampler(Protocol):
    """Makes tokens, by continuous batching: submit at any time, call `step` while there is work."""

    def load_adapter(self, adapter_id: str, base_model: str, folder: Path) -> None:
        """Make saved weights, an adapter or a whole model, available under this id.

        Raises:
            NoRoom: they are a whole model's, and do not fit in memory.
        """
        ...

    def drop_adapter(self, adapter_id: str) -> None:
        """Free an adapter once no submitted work uses it; unknown ids are ignored."""
        ...

    def has_adapter(self, adapter_id: str) -> bool:
        """Whether `snapshot` or `load_adapter` made it available."""
        ...

    def submit(self, work: SampleWork) -> None:
        """Queue work; admission happens in `step`."""
        ...

    def cancel(self, key: str) -> None:
        """Forget work; it yields no result. Unknown keys are ignored."""
        ...

    def step(self) -> list[SampleResult | SampledToken]:
        """Admit what fits, prefill it, make one token for every running sample.

        Returns what finished and, before it, the new tokens of works that stream.
        """
        ...

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        ...


# ---- text ----


class ChatMessage(TypedDict):
    """One message of a conversation, as chat templates read it."""

    role: str
    content: str
    name: NotRequired[str]


class Tokenizer(Protocol):
    """One base model's way between text and tokens. Safe from any thread."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with what the tokenizer puts before every text (a BOS token, or nothing)."""
        ...

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The ids of a conversation up to where the assistant speaks next, by the model's own template.

        Raises:
            BadRequest: the model has no chat template, or it refuses these messages.
        """
        ...

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text, in UTF-8; may begin or end within a character.

        Special tokens are their names; ids that stand for no token are empty.
        """
        ...


class Engine(Trainer, Sampler, Protocol):
    """Both, over one set of base models."""

    @property
    def catalog(self) -> Mapping[str, ModelInfo]:
        """The base models on offer by name; their weights load on first use."""
        ...

    def tokenizer(self, base_model: str) -> Tokenizer:
        """That of a base model in the catalog. Loading it on first use takes seconds."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """Sizes that trade memory for speed. Every field changes one or the other."""

    device: str = "auto"
    dtype: str = "auto"
    """"auto" is bfloat16 where the hardware multiplies it, else float32."""
    max_pass_tokens: int = 512
    """Most tokens in one forward-backward pass; longer sequences get a pass of their own. On a processor
    larger passes are no faster, and what they keep for the backward pass takes more memory."""
    max_score_tokens: int = 4096
    """Most tokens in one prefill or scoring pass."""
    max_slots: int = 128
    """Most samples decoding at once, per base model. More of them make more tokens a second, each later."""
    max_cache_bytes: int = field(default=4 * 2**30)
    """Fewer decode at once where the keys and values of their full lengths would exceed this."""
    max_prefix_bytes: int = 2**28
    """Most that finished conversations take which may go on; 0 reads every turn from its beginning."""
    head_chunk: int = 128
    """Most positions whose full-vocabulary logits exist at once. Larger ones leave the processor's caches."""
    max_loss_values: int = field(default=2**27)
    """Most values that a custom loss may compute for one datum, over all its operations. Half a
    gigabyte in fp32: pairwise terms of 4,096 positions fit a few times."""
    max_models_bytes: int = field(default=16 * 2**30)
    """Base models beyond this are evicted, least recently used first."""
    max_full_bytes: int = field(default=16 * 2**30)
    """Most that runs which train all weights, and copies of these to sample from, may take. Nothing of it is
    evicted: what does not fit is refused."""
