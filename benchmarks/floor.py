"""The floor: what no implementation on this machine can beat, measured beside everything else.

Two rates are measured: matrix products at the model's own shapes and at the batch sizes that occur,
and the reading of memory. From them follow, for N multiplied parameters (the unembedding counts, the
embedding is a look-up) and M parameters of a LoRA adapter:

    forward             2 (N + M) FLOP per token
    backward            2 N + 4 M FLOP per token: nothing is computed for the frozen weights themselves
    any pass            reads the N weights at least once, and so does every decoding step of a batch

Attention is left out, and so is everything that is not a product of matrices: a floor is a bound,
not a prediction.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.work import Job, Work

Shape = tuple[int, int]
"""(in, out) of a linear layer."""

_WEIGHT_BYTES = 2**30
"""Most bytes of weights that a GEMM measurement holds: far beyond every cache, within every memory."""
BATCHES = (16, 64, 256, 1024)
"""Rows of the matrix products that are measured."""
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Rates:
    """What the machine does at its best."""

    gemm_flops: Mapping[str, Mapping[int, float]]
    """FLOP per second, by dtype and rows of the batch."""
    read_bytes: float
    """Bytes of memory read per second."""

    @classmethod
    def from_measured(cls, measured: Mapping[str, Any]) -> Rates:
        """The rates in what `measure` returned."""
        by_dtype = {
            name: {int(rows): rate for rows, rate in rates.items()}
            for name, rates in measured["gemm_flops"].items()
        }
        return cls(by_dtype, measured["read_bytes"])

    @classmethod
    def best(cls, several: Sequence[Rates]) -> Rates:
        """The highest of every rate."""
        first = several[0].gemm_flops
        by_dtype = {
            name: {rows: max(each.gemm_flops[name][rows] for each in several) for rows in first[name]}
            for name in first
        }
        return cls(by_dtype, max(each.read_bytes for each in several))


@dataclass(frozen=True)
class Floor:
    """Bounds for one model on this machine. Seconds, unless a name says tokens per second."""

    body: Sequence[Shape]
    """Linear layers below the unembedding."""
    head: Shape
    """The unembedding."""
    dtype: str
    rates: Rates

    def pass_seconds(
        self,
        rows: int,
        head_rows: int,
        rank: int = 0,
        *,
        backward: bool = False,
        backward_head_rows: int | None = None,
    ) -> float:
        """One pass over `rows` tokens, with the unembedding on `head_rows` of them.

        Args:
            backward: gradients of the adapter as well.
            backward_head_rows: rows with a non-zero loss, if those are fewer.
        """
        n, m = _parameters(self.body), _adapter_parameters(self.body, rank)
        head_n, head_m = _parameters([self.head]), _adapter_parameters([self.head], rank)
        flop = 2 * (n + m) * rows + 2 * (head_n + head_m) * head_rows
        if backward:
            live = head_rows if backward_head_rows is None else backward_head_rows
            flop += (2 * n + 4 * m) * rows + (2 * head_n + 4 * head_m) * live
        return max(flop / self.rate(rows), self.weight_bytes / self.rates.read_bytes)

    @property
    def weight_bytes(self) -> int:
        """What a pass reads at least."""
        return _parameters([*self.body, self.head]) * _ITEM_BYTES[self.dtype]

    def rate(self, rows: int) -> float:
        """GEMM rate at the smallest measured batch that is no smaller than this one.

        Few rows get the rate of the smallest batch: what bounds them is the reading of weights.
        """
        rates = self.rates.gemm_flops[self.dtype]
        return rates[min((measured for measured in rates if measured >= rows), default=max(rates))]

    # ---- rows ----

    def sample(self, work: Work) -> float:
        """Sampled tokens per second: every prompt once, then one step of all samples per token."""
        return work.sampled_tokens / self._sample_seconds(work)

    def sample_turns(self, work: Work) -> float:
        """Seconds of conversations of which every token is read once."""
        return work.turns * self._sample_seconds(work)

    def score(self, work: Work) -> float:
        """Tokens per second, where what a group has in common is computed once."""
        return work.total_tokens / self._score_seconds(work)

    def train(self, work: Work) -> float:
        """Tokens per second forward and backward, where what a group has in common is computed once."""
        return work.total_tokens / self._train_seconds(work)

    def opd_step(self, work: Work) -> float:
        """Sampling, the teacher's scoring, and training, one after the other."""
        return self._sample_seconds(work) + self._score_seconds(_bare(work)) + self._train_seconds(work)

    def rl_step(self, work: Work) -> float:
        """Sampling and training, one after the other."""
        return self._sample_seconds(work) + self._train_seconds(work)

    def submission_milliseconds(self, work: Work) -> float:
        """Four arrays copied on their way out (tokens, and three of the loss), one on its way in."""
        return 1e3 * work.total_tokens * 5 * (4 + 4) / self.rates.read_bytes

    def weights_to_sampler_milliseconds(self, work: Work) -> float:
        """The fp32 adapter read, and written in the model's dtype."""
        values = _adapter_parameters([*self.body, self.head], work.rank)
        return 1e3 * values * (4 + _ITEM_BYTES[self.dtype]) / self.rates.read_bytes

    def request_milliseconds(self, work: Work) -> float:
        """One pass over the prompt."""
        return 1e3 * self.pass_seconds(work.prompt, 1)

    def cold_start(self, work: Work) -> float:
        """Weights read once, and one pass over the prompt."""
        return self.weight_bytes / self.rates.read_bytes + self.pass_seconds(work.prompt, 1)

    def _sample_seconds(self, work: Work) -> float:
        prefill = self.pass_seconds(work.groups * work.prompt, work.groups, work.rank)
        return prefill + (work.tokens - 1) * self.pass_seconds(work.sequences, work.sequences, work.rank)

    def _score_seconds(self, work: Work) -> float:
        # A sequence's last token is scored, not read.
        rows = work.distinct_tokens - work.sequences
        return self.pass_seconds(rows, rows, work.rank)

    def _train_seconds(self, work: Work) -> float:
        rows = work.distinct_tokens - work.sequences
        live = min(rows, work.sampled_tokens)
        return self.pass_seconds(rows, rows, work.rank, backward=True, backward_head_rows=live)

    @classmethod
    def from_measured(cls, measured: Mapping[str, Any], rates: Rates) -> Floor:
        """The floor of the model in what `measure` returned."""
        body, head = measured["body"], measured["head"]
        return cls([(i, o) for i, o in body], (head[0], head[1]), measured["dtype"], rates)


def _bare(work: Work) -> Work:
    return Work(groups=work.groups, samples=work.samples, prompt=work.prompt, tokens=work.tokens)


def _parameters(shapes: Sequence[Shape]) -> int:
    return sum(i * o for i, o in shapes)


def _adapter_parameters(shapes: Sequence[Shape], rank: int) -> int:
    return sum(rank * (i + o) for i, o in shapes)


# ---- measuring ----


def measure(job: Job) -> dict[str, Any]:
    """The model's shapes and the machine's rates; where the weights are, and which dtype ours chooses."""
    import torch

    from tinkerlite_server.engine.catalog import resolve_device, resolve_dtype, resolve_folder

    folder = resolve_folder(job.model)
    body, head = linear_shapes(folder)
    dtype = resolve_dtype("auto", resolve_device("auto"))
    return {
        "folder": str(folder),
        "dtype": dtype,
        "vocab_size": json.loads((folder / "config.json").read_text())["vocab_size"],
        "threads": torch.get_num_threads(),
        "body": body,
        "head": head,
        "read_bytes": read_bandwidth(),
        "gemm_flops": {
            name: gemm_rates([*body, head], BATCHES, name) for name in {"float32", "bfloat16", dtype}
        },
    }


def linear_shapes(folder: Path) -> tuple[list[Shape], Shape]:
    """(in, out) of every linear layer of a model, the unembedding apart."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return [(m.in_features, m.out_features) for m in layers], (head.in_features, head.out_features)


def gemm_rates(shapes: Sequence[Shape], batches: Sequence[int], dtype: str) -> dict[int, float]:
    """FLOP per second of x W^T by rows of x, over the model's weights one after the other.

    Of torch's own product and of oneDNN's with weights in its own layout, the faster.
    """
    import torch

    from tinkerlite_server.engine.products import packed, packed_linear

    kind = getattr(torch, dtype)
    weights: list[Any] = []
    held = 0
    for inputs, outputs in reversed(shapes):  # the unembedding first: it is the largest
        if weights and held + inputs * outputs * kind.itemsize > _WEIGHT_BYTES:
            break
        weights.append(torch.rand(outputs, inputs, dtype=kind))
        held += weights[-1].nbytes
    flop_per_row = 2 * sum(weight.numel() for weight in weights)
    packs = [packed(weight) for weight in weights]
    rates: dict[int, float] = {}
    for rows in batches:
        x = {width: torch.rand(rows, width, dtype=kind) for width in {w.shape[1] for w in weights}}

        def multiply(x: dict[int, Any] = x) -> None:
            for weight in weights:
                torch.nn.functional.linear(x[weight.shape[1]], weight)

        def multiply_packed(x: dict[int, Any] = x) -> None:
            for weight, pack in zip(weights, packs, strict=True):
                if pack is None:
                    torch.nn.functional.linear(x[weight.shape[1]], weight)
                else:
                    packed_linear(x[weight.shape[1]], pack)

        with torch.inference_mode():
            seconds = min(_best_seconds(multiply), _best_seconds(multiply_packed))
        rates[rows] = rows * flop_per_row / seconds
    return rates


def read_bandwidth(size_bytes: int = 2**29) -> float:
    """Bytes per second, reading memory beyond every cache: summing it, or copying it (read and write)."""
    import torch

    values = torch.rand(size_bytes // 4)
    half = len(values) // 2
    summed = size_bytes / _best_seconds(lambda: values.sum())
    copied = size_bytes / _best_seconds(lambda: values[:half].copy_(values[half:]))
    return max(summed, copied)


def _best_seconds(action: Callable[[], object], budget_seconds: float = 1.0, most: int = 10) -> float:
    """The fastest of several repetitions: a floor is what the machine can do on a good day."""
    best, began, count = math.inf, time.perf_counter(), 0
    while count == 0 or (count < most and time.perf_counter() - began < budget_seconds):
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
        count += 1
    return best
