"""The lean decoder computes what transformers' modules compute: states, gradients, any mix of adapters."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.server.engine.sampling import make_adapter
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.lean_decoder import LeanDecoder
from tinkerlite_server.engine.lean_functions import rms_norm, torch_rms_norm
from tinkerlite_server.engine.lora import Adapter, LoraPair
from tinkerlite_server.engine.products import FEWEST_PACKED, Product
from tinkerlite_server.engine.protocols import AdapterConfig, EngineLimits
from tinkerlite_server.engine.streams import PackedStream

CPU = torch.device("cpu")


def both(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[BaseModel, BaseModel]:
    info = build_catalog([str(folder)], EngineLimits(device="cpu", dtype="float32"))[str(folder)]
    lean, general = (BaseModel(info, CPU, dtype, lean=lean) for lean in (True, False))
    return lean, general


def a_stream(model: BaseModel, *adapters: Adapter | None) -> PackedStream:
    """One sequence an adapter, of different lengths."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, model.info.vocab_size, 9 + 4 * i) for i in range(len(adapters))]
    return PackedStream(sequences, adapters, CPU)


def test_states_are_those_of_the_general_path(any_folder: Path) -> None:
    lean, general = both(any_folder)
    with torch.inference_mode():
        torch.testing.assert_close(
            lean.hidden(a_stream(lean, None, None)), general.hidden(a_stream(general, None, None))
        )


@pytest.mark.parametrize("trainable", [False, True])
def test_states_under_several_adapters_at_once_are_those_of_the_general_path(
    any_folder: Path, trainable: bool
) -> None:
    lean, general = both(any_folder)
    adapters = [make_adapter(lean, seed) for seed in (1, 2)]
    for adapter in adapters:
        for _, factor in adapter.parameters():
            factor.requires_grad_(trainable)
    mix = (adapters[0], None, adapters[1])
    for users in (mix, adapters[:1]):
        with torch.inference_mode():
            torch.testing.assert_close(
                lean.hidden(a_stream(lean, *users)), general.hidden(a_stream(general, *users))
            )


def test_gradients_of_every_factor_are_those_of_the_general_path(any_folder: Path) -> None:
    for mixed in (False, True):
        gradients: list[list[Tensor]] = []
        for model in both(any_folder):
            one, two = (make_adapter(model, seed) for seed in (1, 2))
            for _, factor in (*one.parameters(), *two.parameters()):
                factor.requires_grad_()
            users = (one, None, two) if mixed else (one, one)
            hidden = model.hidden(a_stream(model, *users))
            (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
            learners = (one, two) if mixed else (one,)
            gradients.append(
                [f.grad for each in learners for _, f in each.parameters() if f.grad is not None]
            )
        assert len(gradients[0]) == len(gradients[1]) > 20
        for mine, theirs in zip(*gradients, strict=True):
            assert float((mine - theirs).norm()) < 1e-5 * float(theirs.norm())


def test_torch_s_norm_which_cuda_takes_is_ours() -> None:
    generator = torch.Generator().manual_seed(0)
    results: list[tuple[Tensor, ...]] = []
    x, weight, grad = (
        torch.randn(*shape, generator=generator) for shape in ((7, 3, 16), (3, 16), (7, 3, 16))
    )
    for norm in (rms_norm, torch_rms_norm):
        leaf = x.clone().requires_grad_()
        out = norm(leaf, weight, 1e-5, torch.float32)
        out.backward(grad)
        assert leaf.grad is not None
        results.append((out.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_in_bfloat16_it_is_as_near_to_fp32_as_the_general_path(any_folder: Path) -> None:
    exact, _ = both(any_folder)
    with torch.inference_mode():
        expected = exact.hidden(a_stream(exact, None, None))
        lean, general = (
            float((model.hidden(a_stream(model, None, None)).float() - expected).abs().mean())
            for model in both(any_folder, torch.bfloat16)
        )
    assert 0 < lean < 1.2 * general


def test_a_products_layers_share_its_memory() -> None:
    linears = {"q": nn.Linear(8, 6, bias=True), "k": nn.Linear(8, 2, bias=False)}
    kept = [linear.weight.detach().clone() for linear in linears.values()]
    product = Product({name: linear.requires_grad_(False) for name, linear in linears.items()})
    assert torch.equal(product.weight_OI, torch.cat(kept))
    for linear in linears.values():
        assert linear.weight.untyped_storage().data_ptr() == product.weight_OI.untyped_storage().data_ptr()
    x = torch.randn(5, 8)
    expected = torch.cat([linear(x) for linear in linears.values()], dim=1)
    torch.testing.assert_close(product(x, ()), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float32, 1e-5)])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_packed_weights_give_the_product_of_plain_ones(
    rows: int, dtype: torch.dtype, tolerance: float
) -> None:
    linear = nn.Linear(512, 640, bias=True, dtype=dtype).requires_grad_(False)
    assert linear.weight.numel() > FEWEST_PACKED
    x = torch.randn(rows, 512, dtype=dtype)
    with torch.inference_mode():
        product = Product({"q": linear})
        torch.testing.assert_close(product(x, ()), linear(x), rtol=tolerance, atol=tolerance)
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():
        assert product.extra_bytes == 4 * linear.weight.numel()


def test_small_matrices_in_fp32_are_not_packed() -> None:
    assert Product({"q": nn.Linear(64, 96).requires_grad_(False)}).extra_bytes == 0


def test_an_adapter_that_is_let_go_or_rests_is_not_kept() -> None:
    linear = nn.Linear(8, 6, bias=False).requires_grad_(False)
    product = Product({"q": linear})
    pair = LoraPair(torch.randn(2, 8), torch.randn(6, 2))
    adapter = Adapter(AdapterConfig(rank=2, alpha=2, seed=0), {"q": pair})
    first = product._frozen_factors(adapter)
    assert product._frozen_factors(adapter) is first
    assert len(product._fused) == 1
    other = Adapter(AdapterConfig(rank=2, alpha=2, seed=1), {"q": pair})
    product._frozen_factors(other)
    product.forget_factors(kept=other)
    assert list(product._fused) == [other]
    del other
    assert len(product._fused) == 0


def test_other_architectures_take_the_general_path() -> None:
    assert LeanDecoder.suits(SimpleNamespace(model_type="qwen3", hidden_act="silu"))
    assert not LeanDecoder.suits(SimpleNamespace(model_type="gemma3_text", hidden_act="gelu_pytorch_tanh"))
    assert not LeanDecoder.suits(SimpleNamespace(model_type="llama", hidden_act="gelu"))
