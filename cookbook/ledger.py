"""Ledgers: floating-point operations of a run, by model and by phase, from the token counts in its rows.

    trunk        parameters of the layers' matrices
    forward      2 trunk * tokens + 2 d V * logits + 4 L H * attended        (H: heads times their size)
    backward     the same again for gradients of activations, from trained positions only at the
                 unembedding, and once more for those of whatever weights are trained
    LoRA         its own matrices are read, and trained, like any others

A multiplication and an addition are two operations. Norms, rotations and softmax are left out, and so is
whatever a server computes again to save memory. Knows rows and shapes; asks no server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cookbook.metrics import Row
from cookbook.work import Work, from_row, total

STUDENT_PHASES = ("sampling", "training")
TEACHER_PHASES = ("data", "scoring")
"""`data` is what sampling the answers of supervised examples would have taken their author."""


class UnknownShape(ValueError):
    """A model's dimensions cannot be had."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Dimensions of a decoder with gated feed-forward layers (Llama, SmolLM2, Mistral, Qwen2, Qwen3)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    rank: int = 0
    """Of a LoRA adapter on every matrix, the unembedding included; 0 if there is none."""
    trains_adapter: bool = True
    """Only the adapter is trained; otherwise all weights are."""

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of the matrices of a layer."""
        d, query, key = self.hidden, self.heads * self.head_size, self.kv_heads * self.head_size
        feed_forward = ((d, self.intermediate), (d, self.intermediate), (self.intermediate, d))
        return ((d, query), (d, key), (d, key), (query, d), *feed_forward)

    @property
    def trunk(self) -> int:
        """Parameters of the matrices of all layers."""
        return self.layers * sum(m * n for m, n in self.matrices)

    @property
    def unembedding(self) -> int:
        """Parameters of the unembedding, tied or not."""
        return self.hidden * self.vocabulary

    @property
    def trunk_adapter(self) -> int:
        """Parameters of the LoRA adapter of the layers."""
        return self.layers * self.rank * sum(m + n for m, n in self.matrices)

    @property
    def unembedding_adapter(self) -> int:
        """Parameters of the LoRA adapter of the unembedding."""
        return self.rank * (self.hidden + self.vocabulary)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, rank: int = 0, trains_adapter: bool = True
    ) -> ModelShape:
        """From a transformers config.json.

        Raises:
            UnknownShape: one of the dimensions is not there, as in models of other kinds.
        """
        try:
            hidden, heads = config["hidden_size"], config["num_attention_heads"]
            return cls(
                hidden=hidden,
                layers=config["num_hidden_layers"],
                heads=heads,
                kv_heads=config.get("num_key_value_heads") or heads,
                head_size=config.get("head_dim") or hidden // heads,
                intermediate=config["intermediate_size"],
                vocabulary=config["vocab_size"],
                rank=rank,
                trains_adapter=trains_adapter,
            )
        except KeyError as missing:
            raise UnknownShape(
                f"config.json has no {missing}: not a decoder whose cost is known here"
            ) from missing

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, *, rank: int = 0, trains_adapter: bool = True) -> ModelShape:
        """From the config.json that servers of this project hand out beside the tokenizer's files.

        Other servers name a tokenizer of the hub, whose model has a configuration there.

        Raises:
            UnknownShape: there is none; use `from_config` with one of your own.
        """
        name = str(tokenizer.name_or_path)
        file = Path(name) / "config.json"
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else _config_from_hub(name)
        return cls.from_config(config, rank=rank, trains_adapter=trains_adapter)


def _config_from_hub(name: str) -> dict[str, Any]:
    transformers: Any = import_module("transformers")  # takes seconds, and only this needs it
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UnknownShape(f"there is no config.json beside the tokenizer {name!r}") from error
    return dict(config.get_text_config().to_dict())


def forward_flops(shape: ModelShape, work: Work) -> float:
    """Operations of reading tokens, with logits where they are wanted."""
    layers = 2.0 * (shape.trunk + shape.trunk_adapter) * work.tokens
    logits = 2.0 * (shape.unembedding + shape.unembedding_adapter) * work.logits
    return layers + logits + _attention(shape, work)


def training_flops(shape: ModelShape, work: Work) -> float:
    """Operations of one forward and one backward pass."""
    activations = _backward(
        shape.trunk + shape.trunk_adapter, shape.unembedding + shape.unembedding_adapter, work
    )
    if shape.trains_adapter:
        weights = _backward(shape.trunk_adapter, shape.unembedding_adapter, work)
    else:
        weights = _backward(shape.trunk, shape.unembedding, work)
    return forward_flops(shape, work) + activations + weights + 2 * _attention(shape, work)


def _backward(trunk: int, unembedding: int, work: Work) -> float:
    """One product for each parameter: at every token in the layers, above them where gradients start."""
    return 2.0 * (trunk * work.tokens + unembedding * work.trained)


def _attention(shape: ModelShape, work: Work) -> float:
    """Scores and weighted sums: two products of a head's size for each pair, in every head."""
    return 4.0 * shape.layers * shape.heads * shape.head_size * work.attended


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Floating-point operations by phase."""

    sampling: float = 0.0
    """The student's own completions."""
    training: float = 0.0
    """The student's forward and backward passes."""
    scoring: float = 0.0
    """The teacher's reading of the student's completions."""
    data: float = 0.0
    """What it took the teacher to write the answers of supervised examples."""

    @property
    def student(self) -> float:
        """Both of the student's phases."""
        return self.sampling + self.training

    @property
    def with_free_data(self) -> float:
        """All but the writing of supervised answers, which are there already."""
        return self.student + self.scoring

    @property
    def with_paid_data(self) -> float:
        """Everything, as if the teacher had to write the supervised answers first."""
        return self.with_free_data + self.data

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(
            sampling=self.sampling + other.sampling,
            training=self.training + other.training,
            scoring=self.scoring + other.scoring,
            data=self.data + other.data,
        )


def ledger(
    rows: Sequence[Row], student: ModelShape, teacher: ModelShape | None = None, *, until: int | None = None
) -> Ledger:
    """What a run has cost.

    Args:
        rows: of one run; those without "work" cost nothing.
        student: with its adapter.
        teacher: None is one that costs nothing, such as a task that knows its own answers.
        until: the student after this many updates; None is all of them.
    """
    by_phase: dict[str, list[Work]] = {}
    for row in rows:
        if until is None or row["step"] < until:
            for phase, work in from_row(row.get("work", {})).items():
                by_phase.setdefault(phase, []).append(work)
    works = {phase: total(of_phase) for phase, of_phase in by_phase.items()}
    nothing = Work()
    return Ledger(
        sampling=forward_flops(student, works.get("sampling", nothing)),
        training=training_flops(student, works.get("training", nothing)),
        scoring=forward_flops(teacher, works.get("scoring", nothing)) if teacher else 0.0,
        data=forward_flops(teacher, works.get("data", nothing)) if teacher else 0.0,
    )


def print_ledger(ledgers: Mapping[str, Ledger], console: Console) -> None:
    """One line a run."""
    table = Table(
        box=box.SIMPLE_HEAD, title="Floating-point operations", title_justify="left", pad_edge=False
    )
    table.add_column("run", no_wrap=True)
    titles = ["sampling", "training", "teacher scores", "total"]
    if has_data := any(entry.data for entry in ledgers.values()):
        titles += ["teacher writes data", "with that"]
    for title in titles:
        table.add_column(title, justify="right", min_width=8)
    for name, entry in ledgers.items():
        cells = [entry.sampling, entry.training, entry.scoring, entry.with_free_data]
        if has_data:
            cells += [entry.data, entry.with_paid_data]
        table.add_row(name, *map(flops_text, cells))
    console.print(table)


def flops_text(flops: float) -> str:
    """As in "8.4e+19"; a dash for none."""
    return f"{flops:.2e}" if flops else "-"
