"""One adapter's AdamW: torch's own steps, and the formula's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tinkerlite.types import AdamParams
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.optimizer import AdamW
from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.errors import BadRequest

SCHEDULE = [
    AdamParams(learning_rate=1e-2, weight_decay=0.1),
    AdamParams(learning_rate=3e-2, weight_decay=0.1, grad_clip_norm=0.5),
    AdamParams(learning_rate=1e-2, beta1=0.8, beta2=0.99, eps=1e-8, grad_clip_norm=100.0),
    AdamParams(learning_rate=0.0, weight_decay=1.0),
]
"""Every setting changes from step to step, as schedules in the client do."""


def make_adapter() -> Adapter:
    targets = {"layers.0.self_attn.q_proj": nn.Linear(6, 5), "layers.0.mlp.up_proj": nn.Linear(6, 7)}
    return Adapter.fresh(AdapterConfig(rank=2, alpha=32.0, seed=1, train_unembed=False), targets)


def set_gradients(tensors: list[torch.Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        tensor.grad = torch.randn(tensor.shape, generator=generator)


def norm_of(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float((t.grad.double() ** 2).sum()) for t in tensors if t.grad is not None))


def test_steps_are_those_of_torchs_adamw_after_clip_grad_norm():
    adapter = make_adapter()
    ours = [tensor for _, tensor in adapter.parameters()]
    twins = [tensor.detach().clone().requires_grad_() for tensor in ours]
    optimizer = AdamW(adapter)
    reference = torch.optim.AdamW(twins, foreach=False, fused=False)
    for number, params in enumerate(SCHEDULE):
        set_gradients(ours, number)
        set_gradients(twins, number)
        whole = norm_of(twins)
        if params.grad_clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(twins, params.grad_clip_norm)
        for group in reference.param_groups:
            group.update(
                lr=params.learning_rate,
                betas=(params.beta1, params.beta2),
                eps=params.eps,
                weight_decay=params.weight_decay,
            )
        reference.step()
        figures = optimizer.step(params)
        assert figures["grad_norm"] == pytest.approx(whole, rel=1e-5)  # before clipping
        assert (figures["step"], figures["learning_rate"]) == (number + 1, params.learning_rate)
        for tensor, twin in zip(ours, twins, strict=True):
            torch.testing.assert_close(tensor, twin, atol=1e-7, rtol=1e-6)
            assert tensor.grad is None


def test_a_step_follows_the_formula_with_decoupled_decay_and_bias_correction():
    """p <- p (1 - lr wd) - lr m_hat / (sqrt(v_hat) + eps), in double precision by hand."""
    adapter = make_adapter()
    ours = [tensor for _, tensor in adapter.parameters()]
    by_hand = [tensor.detach().double() for tensor in ours]
    m, v = [[torch.zeros_like(p) for p in by_hand] for _ in range(2)]
    params = AdamParams(learning_rate=1e-2, weight_decay=0.3, grad_clip_norm=1.0)
    optimizer = AdamW(adapter)
    for step in (1, 2, 3):
        set_gradients(ours, step)
        scale = min(1.0, params.grad_clip_norm / (norm_of(ours) + 1e-6))
        gradients = [tensor.grad.double() * scale for tensor in ours if tensor.grad is not None]
        for i, g in enumerate(gradients):
            m[i] = params.beta1 * m[i] + (1 - params.beta1) * g
            v[i] = params.beta2 * v[i] + (1 - params.beta2) * g**2
            m_hat, v_hat = m[i] / (1 - params.beta1**step), v[i] / (1 - params.beta2**step)
            by_hand[i] = by_hand[i] * (1 - params.learning_rate * params.weight_decay)
            by_hand[i] -= params.learning_rate * m_hat / (v_hat.sqrt() + params.eps)
        optimizer.step(params)
        for tensor, expected in zip(ours, by_hand, strict=True):
            torch.testing.assert_close(tensor.detach().double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_no_limit_on_the_norm_leaves_the_gradient_as_it_is(limit: float):
    one, other = make_adapter(), make_adapter()
    for adapter, params in (
        (one, AdamParams(eps=1.0, grad_clip_norm=limit)),  # with eps 1 the gradient's size matters
        (other, AdamParams(eps=1.0, grad_clip_norm=1e9)),
    ):
        set_gradients([tensor for _, tensor in adapter.parameters()], 0)
        AdamW(adapter).step(params)
    for (_, a), (_, b) in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_gradient_that_is_not_finite_is_dropped_and_moves_nothing():
    adapter = make_adapter()
    tensors = [tensor for _, tensor in adapter.parameters()]
    before = [tensor.detach().clone() for tensor in tensors]
    optimizer = AdamW(adapter)
    set_gradients(tensors, 0)
    tensors[0].grad[0, 0] = math.inf  # type: ignore[index]
    with pytest.raises(BadRequest, match="norm is inf; it was dropped"):
        optimizer.step(AdamParams())
    assert optimizer.steps == 0
    for tensor, kept in zip(tensors, before, strict=True):
        assert torch.equal(tensor, kept)
        assert tensor.grad is None


def test_a_first_step_that_runs_out_of_memory_can_be_taken_again(monkeypatch: pytest.MonkeyPatch):
    adapter, twin = make_adapter(), make_adapter()
    optimizer, reference = AdamW(adapter), AdamW(twin)
    ours, theirs = ([tensor for _, tensor in each.parameters()] for each in (adapter, twin))
    zeros_like, made = torch.zeros_like, list[torch.Tensor]()

    def zeros_while_there_is_memory(*given: Any, **settings: Any) -> torch.Tensor:
        if len(made) == 3:
            raise RuntimeError("out of memory")
        made.append(zeros_like(*given, **settings))
        return made[-1]

    set_gradients(ours, 0)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "zeros_like", zeros_while_there_is_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step(SCHEDULE[0])
    assert optimizer.steps == 0
    optimizer.state()
    for tensors, each in ((ours, optimizer), (theirs, reference)):
        set_gradients(tensors, 1)
        each.step(SCHEDULE[0])
    torch.testing.assert_close(ours, theirs)
