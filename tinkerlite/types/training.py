"""What training takes and returns: datums, losses' inputs, optimizer settings, outputs.

A datum is already shifted: logits at position i are scored against `target_tokens[i]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field

from tinkerlite.errors import InvalidDatum, InvalidTensor
from tinkerlite.types.inputs import ModelInput, Params
from tinkerlite.types.provenance import ProvenanceSpan, ProvenanceSpans
from tinkerlite.types.tensors import TensorData, TensorDtype

LossFnType = Literal[
    "cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "gspo", "stable_reinforce", "custom"
]
LossFnInputs = dict[str, TensorData]
LossFnOutput = dict[str, TensorData]

LOSS_INPUT_DTYPES: dict[str, TensorDtype] = {
    "target_tokens": "int64",
    "weights": "float32",
    "logprobs": "float32",
    "advantages": "float32",
    "clip_low_threshold": "float32",
    "clip_high_threshold": "float32",
    "sequence_ratio_mask": "float32",
}
"""Dtypes of the inputs that losses know by name; plain lists take them."""


@dataclass(frozen=True)
class Datum:
    """One training example: N input tokens, and per-token arrays of the loss by name.

    Arrays, lists and torch tensors given in `loss_fn_inputs` become `TensorData`.

    Two-dimensional torch targets and weights become CSR where that is smaller.

    Raises:
        InvalidDatum: an input that is not a rectangular array of numbers, naming its field; or the
            one list of spans without the other.
    """

    model_input: ModelInput
    loss_fn_inputs: LossFnInputs = field(default_factory=lambda: {})
    model_input_spans: ProvenanceSpans | None = None
    """Where the input's tokens come from; see `with_provenance`."""
    loss_fn_input_spans: ProvenanceSpans | None = None
    """Where the targets come from."""

    def __post_init__(self) -> None:
        converted = {name: _to_tensor(name, value) for name, value in self.loss_fn_inputs.items()}
        object.__setattr__(self, "loss_fn_inputs", converted)
        if (self.model_input_spans is None) != (self.loss_fn_input_spans is None):
            raise InvalidDatum("spans come for the model_input and for the loss_fn_inputs, or for neither")
        for span in [*(self.model_input_spans or ()), *(self.loss_fn_input_spans or ())]:
            if not isinstance(span, ProvenanceSpan):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidDatum(f"{span!r} is no PromptProvenanceSpan and no SampledProvenanceSpan")

    def with_provenance(self, model_input: ProvenanceSpans, loss_fn_inputs: ProvenanceSpans) -> Datum:
        """The same datum, saying from which samples its tokens and its targets come.

        Raises:
            InvalidDatum: the runs do not cover exactly the tokens, or the targets.
        """
        targets = self.loss_fn_inputs.get("target_tokens")
        for name, spans, length in (
            ("model_input", model_input, self.model_input.length),
            ("loss_fn_inputs", loss_fn_inputs, len(targets) if targets is not None else None),
        ):
            covered = sum(span.length for span in spans)
            if length is not None and covered != length:
                raise InvalidDatum(f"the spans of {name} cover {covered} positions; it has {length}")
        return replace(self, model_input_spans=model_input, loss_fn_input_spans=loss_fn_inputs)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name}{tensor.shape}" for name, tensor in self.loss_fn_inputs.items())
        return f"Datum({self.model_input.length} tokens; {inputs})"

    def _repr_html_(self) -> str:
        from tinkerlite.notebook import show

        return show(self).html


def _to_tensor(name: str, value: Any) -> TensorData:
    if isinstance(value, TensorData):
        return value
    try:
        if hasattr(value, "detach"):  # a torch tensor, without importing torch
            may_be_sparse = name in ("target_tokens", "weights")
            return TensorData.from_torch_sparse(value) if may_be_sparse else TensorData.from_torch(value)
        return TensorData(value, LOSS_INPUT_DTYPES.get(name))
    except InvalidTensor as error:
        raise InvalidDatum(f"loss_fn_inputs[{name!r}]: {error}") from error


class LoraConfig(Params):
    """Which weights get a low-rank adapter, and of which rank. Alpha is 32 (`LORA_ALPHA`)."""

    rank: int = Field(ge=1)
    seed: int | None = None
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True


LORA_ALPHA = 32.0
"""Adapters are scaled by LORA_ALPHA / rank: the wire has no alpha, and this is the hosted service's."""


@dataclass(frozen=True)
class ForwardBackwardOutput:
    """Per-datum arrays, in the order of the data, and the metrics of the whole batch.

    `loss_fn_outputs[i]["logprobs"]` is float32, shaped like the datum's `target_tokens`, in
    nats. Metric names are `name:reduction`; `loss:sum` is always there.
    """

    loss_fn_output_type: str
    loss_fn_outputs: list[LossFnOutput]
    metrics: dict[str, float] = field(default_factory=lambda: {})

    def __repr__(self) -> str:
        loss = self.metrics.get("loss:sum")
        return f"ForwardBackwardOutput({len(self.loss_fn_outputs)} datums, loss:sum={loss})"


@dataclass(frozen=True, kw_only=True)
class ForwardBackwardRequest:
    """What a client sends for `forward_backward` and `forward`."""

    model_id: str
    seq_id: int
    """From 1; 0 means that the client gave none."""
    data: list[Datum]
    loss_fn: str
    loss_fn_config: Mapping[str, float | str] = field(default_factory=lambda: {})
    forward_only: bool = False
