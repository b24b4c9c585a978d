"""Logits are fp32 whatever the weights' dtype: half precision rounds factors, never results."""

import pytest
import torch

from tinkerlite_server.engine.lora import Adapter, LoraPair
from tinkerlite_server.engine.products import FEWEST_PACKED
from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.engine.unembedding import FEW_ROWS, Unembedding, multiplying_in_bfloat16

HIDDEN, VOCAB, RANK = 64, 300, 4


def a_head(dtype: torch.dtype, *, bias: bool = False) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(HIDDEN, VOCAB, bias=bias).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, 7, 200])
def test_logits_are_the_exact_product_of_the_rounded_factors(
    dtype: torch.dtype, rows: int, bias: bool
) -> None:
    head = a_head(dtype, bias=bias)
    hidden = 20 * torch.randn(rows, HIDDEN)
    logits = Unembedding(head)(hidden)
    expected = hidden.to(dtype).double() @ head.weight.double().T
    expected += head.bias.double() if bias else 0
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_adds_the_low_rank_product(dtype: torch.dtype) -> None:
    unembed = Unembedding(a_head(dtype))
    hidden, a, b = torch.randn(9, HIDDEN), torch.randn(RANK, HIDDEN), torch.randn(VOCAB, RANK)
    adapter = Adapter(AdapterConfig(rank=RANK, alpha=RANK / 2, seed=0), {"lm_head": LoraPair(a, b)})
    factors = unembed.factors(adapter)
    assert factors is not None
    low, added = unembed.low(hidden, factors), unembed(hidden, factors) - unembed(hidden)
    rounded = [each.to(dtype).double() for each in (hidden, a, b)]
    expected_low = 0.5 * rounded[0] @ rounded[1].T
    torch.testing.assert_close(low.double(), expected_low, atol=1e-4, rtol=0)
    torch.testing.assert_close(added.double(), low.to(dtype).double() @ rounded[2].T, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_packed_weights_give_the_logits_of_weights_that_are_trained(rows: int, bias: bool) -> None:
    head = torch.nn.Linear(256, 1100, bias=bias).requires_grad_(False)
    assert head.weight.numel() > FEWEST_PACKED
    hidden = torch.randn(rows, 256)
    frozen = Unembedding(head)
    trained = Unembedding(head.requires_grad_())
    assert trained.extra_bytes == 0
    assert frozen.extra_bytes == (4 * head.weight.numel() if torch.backends.mkldnn.is_available() else 0)
    torch.testing.assert_close(frozen(hidden), trained(hidden).detach(), atol=1e-5, rtol=1e-5)


def test_logits_written_where_there_is_room_are_the_same() -> None:
    unembed = Unembedding(a_head(torch.bfloat16))
    hidden = torch.randn(5, HIDDEN)
    room = unembed.room(8)
    logits = unembed(hidden, room=room)
    assert logits.data_ptr() == room.data_ptr()
    assert torch.equal(logits, unembed(hidden))


def test_the_process_multiplies_as_before_afterwards() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(ZeroDivisionError), multiplying_in_bfloat16():
        raise ZeroDivisionError
    assert torch.backends.mkldnn.matmul.fp32_precision == before
