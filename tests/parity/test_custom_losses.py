"""Custom losses in the trainer: the gradients of the client's two passes, merged and packed as others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.server.loss_graphs import GraphWriter, weighted_square
from tests.tiny import make_tiny_model
from tinkerlite_server.engine.model_pool import ModelPool
from tinkerlite_server.engine.protocols import (
    AdapterConfig,
    EngineLimits,
    Example,
    LossProgram,
    ModelInfo,
    TrainBatch,
    TrainOutput,
)
from tinkerlite_server.engine.trainer import LocalTrainer
from tinkerlite_server.errors import BadRequest

LIMITS = EngineLimits(device="cpu", dtype="float32", max_pass_tokens=64, head_chunk=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), seed=3)


def make_trainer(folder: Path, *runs: str) -> LocalTrainer:
    info = ModelInfo(
        name=str(folder),
        arch="llama",
        vocab_size=512,
        max_context=512,
        eos_ids=(2,),
        dtype="float32",
        folder=folder,
        tokenizer_hash="",
    )
    trainer = LocalTrainer(ModelPool({str(folder): info}, LIMITS), LIMITS)
    for seed, run in enumerate(runs):
        trainer.create_run(run, str(folder), AdapterConfig(rank=4, alpha=32.0, seed=seed))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, tensor in trainer.run(run).adapter.parameters():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.02)
    return trainer


def examples(seed: int, count: int = 8, k: int | None = None, **inputs: Any) -> list[Example]:
    """Sequences with a common prefix and mixed lengths, several passes of them."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 512, 10)
    made = []
    for _ in range(count):
        full = np.concatenate([start, rng.integers(0, 512, rng.integers(2, 20))])
        n = len(full) - 1
        targets = full[1:] if k is None else rng.integers(0, 512, (n, k))
        given = {name: rng.normal(size=targets.shape).astype(np.float32) for name in inputs or ["bonus"]}
        made.append(Example(full[:-1], targets, given))
    return made


def spread() -> GraphWriter:
    """L = sum of the squared differences between all pairs of targets' probabilities, of rank 2."""
    write = GraphWriter(logprobs=2)
    p = write.method("reshape", write.method("exp", write.input()), -1)
    column = write.method("unsqueeze", p, 1)
    gaps = write.method("square", write.call("operator.sub", column, p))
    return write.returns(write.method("sum", gaps), {"custom/p:mean": write.method("mean", p)})


def custom(run: str, data: Sequence[Example], program: LossProgram, **options: Any) -> TrainBatch:
    return TrainBatch(
        model_id=run, examples=data, loss_fn="custom", loss_config={}, program=program, **options
    )


def gradients(trainer: LocalTrainer, run: str) -> dict[str, torch.Tensor]:
    return {path: tensor.grad for path, tensor in trainer.run(run).adapter.parameters()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], bound: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for path, gradient in one.items():
        difference = (gradient - other[path]).norm() / other[path].norm().clamp(min=1e-6)
        assert float(difference) < bound, path


def two_passes(trainer: LocalTrainer, run: str, data: Sequence[Example], loss_of: Any) -> float:
    """As clients run a custom loss: look, differentiate, and send the gradient as weights."""
    ones = [
        Example(e.tokens, e.target_tokens, {"weights": np.ones(e.target_tokens.shape, np.float32)})
        for e in data
    ]
    batch = TrainBatch(
        model_id=run, examples=ones, loss_fn="cross_entropy", loss_config={}, forward_only=True
    )
    [looked] = trainer.forward_backward([batch])
    assert isinstance(looked, TrainOutput)
    total, weighted = 0.0, []
    for example, lp in zip(data, looked.logprobs, strict=True):
        leaf = torch.tensor(lp, requires_grad=True)
        loss = loss_of(leaf, example)
        loss.backward()
        total += loss.item()
        assert leaf.grad is not None
        weighted.append(Example(example.tokens, example.target_tokens, {"weights": -leaf.grad.numpy()}))
    batch = TrainBatch(model_id=run, examples=weighted, loss_fn="cross_entropy", loss_config={})
    [output] = trainer.forward_backward([batch])
    assert isinstance(output, TrainOutput), output
    return total


def square_in_torch(lp: torch.Tensor, example: Example) -> torch.Tensor:
    return (torch.from_numpy(example.inputs["bonus"]) * lp**2).sum()


def spread_in_torch(lp: torch.Tensor, example: Example) -> torch.Tensor:
    p = lp.exp().reshape(-1)
    return (p[:, None] - p[None, :]).square().sum()


@pytest.mark.parametrize(
    ("write", "function", "k"),
    [(weighted_square(), square_in_torch, None), (spread(), spread_in_torch, 3)],
    ids=["one target a position", "three targets a position"],
)
def test_one_request_has_the_gradients_of_the_clients_two_passes(
    folder: Path, write: GraphWriter, function: Any, k: int | None
):
    data = examples(1, k=k)
    here, there = make_trainer(folder, "run"), make_trainer(folder, "run")
    [output] = here.forward_backward([custom("run", data, here.compile_loss(write.graph()))])
    assert isinstance(output, TrainOutput), output
    assert output.metrics["loss:sum"] == pytest.approx(two_passes(there, "run", data, function), rel=1e-5)
    assert_same(gradients(here, "run"), gradients(there, "run"))
    assert output.elementwise_loss is None
    assert [lp.shape for lp in output.logprobs] == [example.target_tokens.shape for example in data]


def test_metrics_are_summed_or_averaged_over_datums(folder: Path):
    trainer = make_trainer(folder, "run")
    data = examples(2, count=5)
    [output] = trainer.forward_backward(
        [custom("run", data, trainer.compile_loss(weighted_square().graph()), forward_only=True)]
    )
    assert isinstance(output, TrainOutput)
    assert all(gradient is None for gradient in gradients(trainer, "run").values())
    means = [lp.mean() for lp in output.logprobs]
    squares = [(e.inputs["bonus"] * lp**2).sum() for e, lp in zip(data, output.logprobs, strict=True)]
    assert output.metrics == {
        "loss:sum": pytest.approx(sum(squares), rel=1e-5),
        "tokens:sum": sum(len(e.tokens) for e in data),
        "custom/lp:mean": pytest.approx(np.mean(means), rel=1e-5),
        "custom/square:sum": pytest.approx(sum(squares), rel=1e-5),
    }


def test_two_runs_with_losses_of_their_own_share_passes_and_train_as_each_would_alone(folder: Path):
    data = {"one": examples(3), "two": examples(4, k=2)}
    graphs = {"one": weighted_square(), "two": spread()}
    together = make_trainer(folder, "one", "two")
    programs = {run: together.compile_loss(write.graph()) for run, write in graphs.items()}
    batches = [custom(run, data[run], programs[run]) for run in data]
    outputs = together.forward_backward(batches)
    for run, batch, output in zip(data, batches, outputs, strict=True):
        alone = make_trainer(folder, "one", "two")
        [expected] = alone.forward_backward([batch])
        assert isinstance(output, TrainOutput)
        assert isinstance(expected, TrainOutput)
        assert output.metrics == pytest.approx(expected.metrics, rel=1e-5)
        assert_same(gradients(together, run), gradients(alone, run))


def test_accumulated_requests_add_up_to_their_union(folder: Path):
    data = examples(5)
    apart, union = make_trainer(folder, "run"), make_trainer(folder, "run")
    program = apart.compile_loss(weighted_square().graph())
    apart.forward_backward([custom("run", data[:3], program)])
    apart.forward_backward([custom("run", data[3:], program)])
    union.forward_backward([custom("run", data, program)])
    assert_same(gradients(apart, "run"), gradients(union, "run"))


def test_a_datum_that_fails_is_named_and_leaves_every_gradient_as_it_was(folder: Path):
    write = GraphWriter(logprobs=1, bonus=1)
    root = write.method("sqrt", write.call("operator.mul", write.input("bonus"), write.input()))
    graph = write.returns(write.method("sum", root)).graph()
    good, bad = examples(6), examples(7)
    for example in good + bad:
        example.inputs["bonus"][:] = -1.0
    bad[5].inputs["bonus"][2] = 1.0
    trainer, alone = make_trainer(folder, "good", "bad"), make_trainer(folder, "good", "bad")
    program = trainer.compile_loss(graph)
    for each in (trainer, alone):
        each.forward_backward([custom("bad", good, program)])
    before = {path: gradient.clone() for path, gradient in gradients(trainer, "bad").items()}
    fine, failed = trainer.forward_backward([custom("good", good, program), custom("bad", bad, program)])
    assert isinstance(failed, BadRequest)
    assert str(failed).startswith("datum 5: custom loss 'mine': the loss is nan")
    assert isinstance(fine, TrainOutput)
    for path, gradient in gradients(trainer, "bad").items():
        assert torch.equal(gradient, before[path])
    alone.forward_backward([custom("good", good, program)])
    assert_same(gradients(trainer, "good"), gradients(alone, "good"))
