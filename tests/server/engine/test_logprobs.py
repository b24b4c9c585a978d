"""Chunked logprobs equal a plain log-softmax, and so do their gradients."""

from types import SimpleNamespace

import pytest
import torch

from tinkerlite_server.engine.logprobs import log_sum_exp, target_logprobs
from tinkerlite_server.engine.lora import Adapter, AdapterRows, LoraPair, add_delta
from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.engine.unembedding import Unembedding

ROWS, WIDTH, VOCAB = 13, 8, 50


class Head:
    """The part of a base model that logprobs need: an unembedding and the logits of rows."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.unembed = Unembedding(torch.nn.Linear(WIDTH, VOCAB).requires_grad_(False))

    def logits(self, hidden: torch.Tensor, adapters: list[AdapterRows]) -> torch.Tensor:
        out = self.unembed(hidden)
        for assigned in adapters:
            out = add_delta(out, hidden, assigned, "lm_head")
        return out.float()


def adapter(seed: int) -> Adapter:
    torch.manual_seed(seed)
    pair = LoraPair(torch.randn(3, WIDTH).requires_grad_(), torch.randn(VOCAB, 3).requires_grad_())
    return Adapter(AdapterConfig(rank=3, alpha=6.0, seed=0), {"lm_head": pair})


CASES = {
    "bare": lambda: [],
    "one adapter": lambda: [AdapterRows(adapter(1), None)],
    "two adapters and bare rows": lambda: [
        AdapterRows(adapter(1), torch.tensor([0, 1, 2, 9])),
        AdapterRows(adapter(2), torch.tensor([3, 4, 12])),
    ],
    "an adapter without a head": lambda: [
        AdapterRows(Adapter(AdapterConfig(rank=3, alpha=6.0, seed=0), {}), None)
    ],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_values_and_gradients_equal_a_plain_log_softmax(case: str, chunk: int) -> None:
    model = Head()
    adapters = CASES[case]()
    torch.manual_seed(7)
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    rows, targets = torch.randint(0, ROWS, (40,)), torch.randint(0, VOCAB, (40,))
    weights = torch.randn(40)
    weights[torch.rand(40) < 0.5] = 0
    tensors = [hidden, *(t for a in adapters for p in a.adapter.pairs.values() for t in (p.a, p.b))]

    got = target_logprobs(model, hidden, adapters, rows, targets, chunk)  # type: ignore[arg-type]
    got_gradients = torch.autograd.grad((got * weights).sum(), tensors)
    expected = model.logits(hidden, adapters).log_softmax(-1)[rows, targets]
    expected_gradients = torch.autograd.grad((expected * weights).sum(), tensors)

    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for mine, plain in zip(got_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_of_a_trained_unembedding_equal_a_plain_log_softmaxs(chunk: int, with_bias: bool) -> None:
    torch.manual_seed(2)
    linear = torch.nn.Linear(WIDTH, VOCAB, bias=with_bias)
    model = SimpleNamespace(unembed=Unembedding(linear))
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    rows, targets, weights = torch.randint(0, ROWS, (40,)), torch.randint(0, VOCAB, (40,)), torch.randn(40)
    weights[:25] = 0
    tensors = [hidden, *linear.parameters()]

    got = target_logprobs(model, hidden, [], rows, targets, chunk)
    got_gradients = torch.autograd.grad((got * weights).sum(), tensors)
    expected = linear(hidden).log_softmax(-1)[rows, targets]
    expected_gradients = torch.autograd.grad((expected * weights).sum(), tensors)

    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for mine, plain in zip(got_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-4)


def test_the_gradient_of_a_trained_unembedding_is_the_slope_that_finite_differences_find() -> None:
    torch.manual_seed(3)
    linear = torch.nn.Linear(WIDTH, VOCAB)
    hidden, rows, targets = torch.randn(ROWS, WIDTH), torch.arange(ROWS), torch.randint(0, VOCAB, (ROWS,))

    def total(shift: torch.Tensor | None = None) -> torch.Tensor:
        moved = torch.nn.Linear(WIDTH, VOCAB, bias=True)
        moved.weight.data = linear.weight.detach() + (0 if shift is None else shift)
        moved.bias.data = linear.bias.detach()
        unembed = Unembedding(moved if shift is not None else linear)
        return target_logprobs(SimpleNamespace(unembed=unembed), hidden, [], rows, targets, 5).double().sum()

    (gradient,) = torch.autograd.grad(total(), [linear.weight])
    for seed in range(3):
        torch.manual_seed(seed)
        direction = torch.randn(VOCAB, WIDTH) * 1e-2
        slope = (total(direction) - total(-direction)).detach() / 2
        assert float((gradient * direction).sum().detach()) == pytest.approx(float(slope), rel=1e-3, abs=1e-4)


def test_the_gradient_of_a_trained_unembedding_in_bfloat16_is_that_of_fp32_up_to_rounding() -> None:
    torch.manual_seed(4)
    linear = torch.nn.Linear(WIDTH, VOCAB, bias=False, dtype=torch.bfloat16)
    exact = torch.nn.Linear(WIDTH, VOCAB, bias=False)
    exact.weight.data = linear.weight.detach().float()
    hidden = torch.randn(ROWS, WIDTH).bfloat16().float()
    rows, targets = torch.arange(ROWS), torch.randint(0, VOCAB, (ROWS,))
    gradients = []
    for each in (linear, exact):
        got = target_logprobs(SimpleNamespace(unembed=Unembedding(each)), hidden, [], rows, targets, 4)
        gradients.append(torch.autograd.grad(got.sum(), [each.weight])[0].float())
    assert (gradients[0] - gradients[1]).norm() / gradients[1].norm() < 1e-2


def test_no_pairs_give_no_logprobs() -> None:
    model = Head()
    none = torch.empty(0, dtype=torch.long)
    assert target_logprobs(model, torch.randn(3, WIDTH), [], none, none, 4).shape == (0,)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_log_sum_exp_is_that_of_torch(scale: float) -> None:
    logits = torch.randn(6, 3000, generator=torch.Generator().manual_seed(0)) * scale
    torch.testing.assert_close(
        log_sum_exp(logits, torch.empty_like(logits)), torch.logsumexp(logits.double(), -1).float()
    )


def test_a_certain_token_has_logprob_zero() -> None:
    head = SimpleNamespace(unembed=Unembedding(torch.nn.Linear(1, 3, bias=False)))
    head.unembed.weight.data = torch.tensor([[500.0], [0.0], [-500.0]])
    got = target_logprobs(head, torch.ones(1, 1), [], torch.zeros(3, dtype=torch.long), torch.arange(3), 1)  # type: ignore[arg-type]
    assert got.tolist() == [0.0, -500.0, -1000.0]
