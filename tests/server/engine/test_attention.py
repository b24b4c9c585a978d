"""Attention among blocks: the batched backward pass gives torch's own gradients."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tinkerlite_server.engine.attention import Block, BlockAttention

HEAD_SIZE = 16


def blocks_of(*lengths: int, masked: tuple[int, ...] = ()) -> list[Block]:
    """Blocks one after the other; those in `masked` have two sequences behind a common third."""
    blocks: list[Block] = []
    start = 0
    for number, length in enumerate(lengths):
        mask = two_behind_a_prefix(length) if number in masked else None
        blocks.append(Block(start, start + length, mask))
        start += length
    return blocks


def two_behind_a_prefix(length: int) -> Tensor:
    third = length // 3
    owner = np.repeat([-1, 0, 1], [third, third, length - 2 * third])
    same = (owner[:, None] == owner[None, :]) | (owner[None, :] == -1)
    return torch.from_numpy(same & (np.arange(length)[None, :] <= np.arange(length)[:, None]))


def inputs_of(
    blocks: list[Block], heads: int, kv_heads: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values (as the layers give them: heads first, rows in between) and a gradient."""
    generator = torch.Generator().manual_seed(0)
    rows = blocks[-1].end
    return tuple(  # type: ignore[return-value]
        torch.randn(rows, count, HEAD_SIZE, generator=generator).to(dtype)
        for count in (heads, kv_heads, kv_heads, heads)
    )


def gradients(attend: object, inputs: tuple[Tensor, ...], grad_NHD: Tensor) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = attend(*(leaf.transpose(0, 1) for leaf in leaves), 0.25)  # type: ignore[operator]
    return list(torch.autograd.grad(output, leaves, grad_NHD))


LAYOUTS = {
    "one row": blocks_of(1),
    "equal lengths": blocks_of(7, 7, 7),
    "all different": blocks_of(3, 40, 5, 39, 36, 1, 22),
    "longer than a tile": blocks_of(300, 129, 128),
    "more than a batch holds": blocks_of(*[128] * 12),
    "prefixes": blocks_of(9, 30, 12, 200, 9, masked=(1, 3)),
}


@pytest.mark.parametrize("blocks", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (3, 1)])
def test_gradients_are_those_of_torch(blocks: list[Block], heads: int, kv_heads: int) -> None:
    *inputs, grad = inputs_of(blocks, heads, kv_heads, torch.float32)
    attention = BlockAttention(blocks)
    expected = gradients(attention.forward, tuple(inputs), grad)
    torch.testing.assert_close(gradients(attention, tuple(inputs), grad), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", LAYOUTS.values(), ids=LAYOUTS)
def test_in_bfloat16_they_are_as_near_to_exact_ones_as_those_of_torch(blocks: list[Block]) -> None:
    *inputs, grad = inputs_of(blocks, 6, 2, torch.bfloat16)
    attention = BlockAttention(blocks)
    exact = gradients(attention.forward, tuple(tensor.float() for tensor in inputs), grad.float())
    theirs = gradients(attention.forward, tuple(inputs), grad)
    ours = gradients(attention, tuple(inputs), grad)
    for name, right, torchs, own in zip("qkv", exact, theirs, ours, strict=True):
        assert own.dtype == torch.bfloat16
        allowed = 1.2 * (torchs - right).norm() + 1e-3 * right.norm()
        assert (own - right).norm() <= allowed, name


def test_the_setting_of_products_is_as_it_was_after_a_backward_pass() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    blocks = blocks_of(5)
    *inputs, grad = inputs_of(blocks, 2, 1, torch.bfloat16)
    gradients(BlockAttention(blocks), tuple(inputs), grad)
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]


def test_a_stream_is_differentiated_layer_after_layer_with_one_set_of_batches() -> None:
    blocks = blocks_of(4, 6, 4)
    attention = BlockAttention(blocks)
    *inputs, grad = inputs_of(blocks, 2, 2, torch.float32)
    first = gradients(attention, tuple(inputs), grad)
    made = attention.batches(2)
    torch.testing.assert_close(gradients(attention, tuple(inputs), grad), first, rtol=0, atol=0)
    assert attention.batches(2) is made
