"""Packed, shared-prefix, multi-adapter LoRA gradients equal PEFT's on padded batches, and autograd's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.tiny import make_tiny_model
from tinkerlite.types import AdamParams
from tinkerlite_server.engine.base_model import BaseModel
from tinkerlite_server.engine.lora import Adapter
from tinkerlite_server.engine.model_pool import ModelPool
from tinkerlite_server.engine.protocols import AdapterConfig, EngineLimits, Example, ModelInfo, TrainBatch
from tinkerlite_server.engine.trainer import LocalTrainer

# PEFT's own warnings: on adapters of tied heads, and from its use of names that transformers will drop.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

ARCHS = ["llama", "qwen2", "qwen3"]
LIMITS = EngineLimits(device="cpu", dtype="float32", max_pass_tokens=64, head_chunk=7)


def info_of(folder: Path, arch: str = "llama") -> ModelInfo:
    return ModelInfo(
        name=str(folder),
        arch=arch,
        vocab_size=512,
        max_context=512,
        eos_ids=(2,),
        dtype="float32",
        folder=folder,
        tokenizer_hash="",
    )


@pytest.fixture(params=ARCHS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model", arch=request.param, seed=3)


def make_trainer(folder: Path, limits: EngineLimits = LIMITS) -> LocalTrainer:
    return LocalTrainer(ModelPool({str(folder): info_of(folder)}, limits), limits)


def perturb(adapter: Adapter, seed: int) -> None:
    """Make B non-zero, so that every factor has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in adapter.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.02)


def random_examples(seed: int, *, prefix: int = 0, count: int = 5) -> list[Example]:
    """Sequences of mixed lengths, with a common prefix if asked for, and weights of both signs."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 512, prefix)
    examples = []
    for _ in range(count):
        full = np.concatenate([start, rng.integers(0, 512, rng.integers(2, 20))])
        weights = rng.normal(size=len(full) - 1).astype(np.float32)
        weights[rng.random(len(weights)) < 0.3] = 0
        examples.append(Example(full[:-1], full[1:], {"weights": weights}))
    return examples


def batch(model_id: str, examples: list[Example], **kwargs: object) -> TrainBatch:
    return TrainBatch(model_id=model_id, examples=examples, loss_fn="cross_entropy", loss_config={}, **kwargs)  # type: ignore[arg-type]


def peft_twin(folder: Path, adapter: Adapter) -> torch.nn.Module:
    """PEFT on transformers' own attention, with the same factors."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    config = adapter.config
    names = sorted({path.rsplit(".", 1)[-1] for path in adapter.pairs})
    twin = get_peft_model(
        model,
        LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names, lora_dropout=0.0),
    )
    for path, pair in adapter.pairs.items():
        module = twin.get_submodule(f"base_model.model.{path}")
        module.lora_A["default"].weight.data.copy_(pair.a)
        module.lora_B["default"].weight.data.copy_(pair.b)
    return twin


def padded_loss(twin: torch.nn.Module, examples: list[Example]) -> torch.Tensor:
    """- sum w * lp over a padded batch, the way most trainers run it."""
    longest = max(len(e.tokens) for e in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask, targets, weights = torch.zeros_like(ids), torch.zeros_like(ids), torch.zeros(ids.shape)
    for row, e in enumerate(examples):
        n = len(e.tokens)
        ids[row, :n], mask[row, :n] = torch.from_numpy(e.tokens), 1
        targets[row, :n], weights[row, :n] = (
            torch.from_numpy(e.target_tokens),
            torch.from_numpy(e.inputs["weights"]),
        )
    logprobs = twin(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
    return -(weights * logprobs.gather(-1, targets[..., None])[..., 0]).sum()


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("unembed", [False, True])
def test_packed_gradients_of_two_adapters_equal_pefts_on_padded_batches(folder: Path, unembed: bool) -> None:
    trainer = make_trainer(folder)
    examples = {"one": random_examples(1, prefix=12), "two": random_examples(2)}
    for seed, name in enumerate(examples):
        trainer.create_run(
            name, str(folder), AdapterConfig(rank=4, alpha=32.0, seed=seed, train_unembed=unembed)
        )
        perturb(trainer.run(name).adapter, seed)
    outputs = trainer.forward_backward([batch(name, data) for name, data in examples.items()])
    for name, output in zip(examples, outputs, strict=True):
        adapter = trainer.run(name).adapter
        twin = peft_twin(folder, adapter)
        loss = padded_loss(twin, examples[name])
        loss.backward()
        assert not isinstance(output, Exception), output
        assert output.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5, abs=1e-4)
        for path, pair in adapter.pairs.items():
            module = twin.get_submodule(f"base_model.model.{path}")
            assert relative(pair.a.grad, module.lora_A["default"].weight.grad) < 1e-4, path
            assert relative(pair.b.grad, module.lora_B["default"].weight.grad) < 1e-4, path


def run_alone(
    folder: Path, data: list[Example], limits: EngineLimits = LIMITS
) -> tuple[LocalTrainer, object]:
    trainer = make_trainer(folder, limits)
    trainer.create_run("run", str(folder), AdapterConfig(rank=4, alpha=32.0, seed=0))
    perturb(trainer.run("run").adapter, 0)
    return trainer, trainer.forward_backward([batch("run", data)])[0]


def gradients(trainer: LocalTrainer, name: str = "run") -> dict[str, torch.Tensor]:
    return {path: tensor.grad for path, tensor in trainer.run(name).adapter.parameters()}


def test_one_pass_equals_many_and_a_whole_vocabulary_chunk_equals_small_ones(folder: Path) -> None:
    data = random_examples(4, prefix=20, count=8)
    small, _ = run_alone(folder, data)
    large, _ = run_alone(folder, data, EngineLimits(device="cpu", max_pass_tokens=10_000, head_chunk=10_000))
    for path, gradient in gradients(small).items():
        assert relative(gradient, gradients(large)[path]) < 1e-5, path


def test_accumulated_requests_add_up_to_their_union(folder: Path) -> None:
    data = random_examples(5, count=6)
    together, _ = run_alone(folder, data)
    apart, _ = run_alone(folder, data[:2])
    apart.forward_backward([batch("run", data[2:])])
    for path, gradient in gradients(apart).items():
        assert relative(gradient, gradients(together)[path]) < 1e-5, path


def test_forward_only_leaves_gradients_alone_and_returns_the_same_logprobs(folder: Path) -> None:
    data = random_examples(6)
    trainer, learned = run_alone(folder, data)
    before = {path: gradient.clone() for path, gradient in gradients(trainer).items()}
    [looked] = trainer.forward_backward([batch("run", data, forward_only=True)])
    for path, gradient in gradients(trainer).items():
        assert torch.equal(gradient, before[path])
    for seen, got in zip(looked.logprobs, learned.logprobs, strict=True):
        np.testing.assert_allclose(seen, got, atol=1e-6)


def test_k_targets_a_position_give_the_gradient_of_their_weighted_sum(folder: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 512, 9)
    targets, weights = rng.integers(0, 512, (9, 3)), rng.normal(size=(9, 3)).astype(np.float32)
    wide, output = run_alone(folder, [Example(tokens, targets, {"weights": weights})])
    narrow = make_trainer(folder)
    narrow.create_run("run", str(folder), AdapterConfig(rank=4, alpha=32.0, seed=0))
    perturb(narrow.run("run").adapter, 0)
    for k in range(3):
        narrow.forward_backward(
            [batch("run", [Example(tokens, targets[:, k], {"weights": weights[:, k].copy()})])]
        )
    assert output.logprobs[0].shape == (9, 3)
    for path, gradient in gradients(wide).items():
        assert relative(gradient, gradients(narrow)[path]) < 1e-5, path


def test_datums_with_one_target_and_with_many_go_together_in_one_request(folder: Path) -> None:
    rng = np.random.default_rng(1)
    data = []
    for length, shape in ((9, ()), (4, (3,)), (7, (1,)), (5, (8,))):
        targets = rng.integers(0, 512, (length, *shape))
        weights = rng.normal(size=targets.shape).astype(np.float32)
        data.append(Example(rng.integers(0, 512, length), targets, {"weights": weights}))
    together, output = run_alone(folder, data)
    apart = make_trainer(folder)
    apart.create_run("run", str(folder), AdapterConfig(rank=4, alpha=32.0, seed=0))
    perturb(apart.run("run").adapter, 0)
    for index, example in enumerate(data):
        [alone] = apart.forward_backward([batch("run", [example])])
        np.testing.assert_allclose(output.logprobs[index], alone.logprobs[0], atol=1e-5)
        np.testing.assert_allclose(output.elementwise_loss[index], alone.elementwise_loss[0], atol=1e-5)
        assert output.logprobs[index].shape == example.target_tokens.shape
    for path, gradient in gradients(together).items():
        assert relative(gradient, gradients(apart)[path]) < 1e-5, path


def clipped(ratio: torch.Tensor, given: dict[str, torch.Tensor], low: float, high: float) -> torch.Tensor:
    """The ratio within the bounds of each token, or of all."""
    lows = given.get("clip_low_threshold", torch.full_like(ratio, low))
    highs = given.get("clip_high_threshold", torch.full_like(ratio, high))
    return torch.minimum(torch.maximum(ratio, lows), highs)


def as_documented(name: str, lp: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The losses of docs/protocol.md, of one sequence, spelled out for autograd."""
    q, advantages = given["logprobs"], given["advantages"]
    ratio = (lp - q).exp()
    if name == "importance_sampling":
        return -(ratio * advantages)
    if name == "ppo":
        return -torch.minimum(ratio * advantages, clipped(ratio, given, 0.8, 1.2) * advantages)
    if name == "cispo":
        return -(clipped(ratio, given, 0.0, 4.0).detach() * lp * advantages)
    if name == "dro":
        return -(lp * advantages - 0.01 / 2 * (lp - q) ** 2)
    mask = given["sequence_ratio_mask"]
    mean = ((lp.detach() - q) * mask).sum() / mask.sum()
    ratio = mean.exp() * (lp - lp.detach()).exp()
    return -torch.minimum(ratio * advantages, clipped(ratio, given, 0.8, 1.2) * advantages)


@pytest.fixture(scope="module")
def one_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), seed=3)


@pytest.mark.parametrize("bounds", ["of the loss", "of each token"])
@pytest.mark.parametrize("name", ["importance_sampling", "ppo", "cispo", "dro", "gspo"])
def test_policy_losses_and_their_gradients_are_the_documented_ones_by_autograd_on_peft(
    one_folder: Path, name: str, bounds: str
) -> None:
    rng = np.random.default_rng(7)
    trainer = make_trainer(one_folder)
    trainer.create_run("run", str(one_folder), AdapterConfig(rank=4, alpha=32.0, seed=0))
    perturb(trainer.run("run").adapter, 0)
    plain = random_examples(11, count=6)
    [looked] = trainer.forward_backward([batch("run", plain, forward_only=True)])
    data = []
    for example, logprobs in zip(plain, looked.logprobs, strict=True):
        n = len(logprobs)
        # A sampler some way off, so that ratios lie on both sides of every bound.
        inputs = {"logprobs": logprobs + rng.normal(scale=0.5, size=n), "advantages": rng.normal(size=n)}
        if name == "gspo":
            inputs["sequence_ratio_mask"] = (np.arange(n) >= n // 3).astype(float)
        if bounds == "of each token" and name in ("ppo", "cispo", "gspo"):
            inputs["clip_low_threshold"] = rng.uniform(0.5, 1.0, n)
            inputs["clip_high_threshold"] = rng.uniform(1.0, 1.5, n)
        inputs = {key: value.astype(np.float32) for key, value in inputs.items()}
        data.append(Example(example.tokens, example.target_tokens, inputs))
    [output] = trainer.forward_backward(
        [TrainBatch(model_id="run", examples=data, loss_fn=name, loss_config={})]
    )
    adapter = trainer.run("run").adapter
    twin = peft_twin(one_folder, adapter)
    total = torch.zeros(())
    for example, logprobs, losses in zip(data, output.logprobs, output.elementwise_loss, strict=True):
        table = twin(input_ids=torch.from_numpy(example.tokens)[None]).logits[0].float().log_softmax(-1)
        lp = table.gather(-1, torch.from_numpy(example.target_tokens)[:, None])[:, 0]
        given = {key: torch.from_numpy(value) for key, value in example.inputs.items()}
        expected = as_documented(name, lp, given)
        np.testing.assert_allclose(logprobs, lp.detach(), atol=1e-4)
        np.testing.assert_allclose(losses, expected.detach(), atol=1e-3, rtol=1e-4)
        assert losses.shape == (len(example.tokens),)
        total = total + expected.sum()
    total.backward()
    assert output.metrics["loss:sum"] == pytest.approx(sum(each.sum() for each in output.elementwise_loss))
    for path, pair in adapter.pairs.items():
        module = twin.get_submodule(f"base_model.model.{path}")
        assert relative(pair.a.grad, module.lora_A["default"].weight.grad) < 1e-4, path
        assert relative(pair.b.grad, module.lora_B["default"].weight.grad) < 1e-4, path


def test_a_request_that_fails_keeps_none_of_its_gradients_and_does_not_touch_its_neighbours(
    folder: Path,
) -> None:
    data = random_examples(7, count=12)
    broken = random_examples(8, count=12)
    broken[-1].inputs["weights"][-1] = np.inf
    alone, _ = run_alone(folder, data)
    trainer = make_trainer(folder)
    for name in ("run", "broken"):
        trainer.create_run(name, str(folder), AdapterConfig(rank=4, alpha=32.0, seed=0))
        perturb(trainer.run(name).adapter, 0)
    fine, failed = trainer.forward_backward([batch("run", data), batch("broken", broken)])
    assert "datum 11" in str(failed)
    assert not isinstance(fine, Exception)
    assert all(gradient is None for gradient in gradients(trainer, "broken").values())
    for path, gradient in gradients(trainer).items():
        assert relative(gradient, gradients(alone)[path]) < 1e-5, path


def test_training_lowers_the_loss_and_a_saved_run_goes_on_exactly(folder: Path, tmp_path: Path) -> None:
    data = random_examples(9, count=4)
    for example in data:
        np.abs(example.inputs["weights"], out=example.inputs["weights"])
    trainer, first = run_alone(folder, data)
    params = AdamParams(learning_rate=1e-2, grad_clip_norm=1.0, weight_decay=0.01)
    for _ in range(5):
        trainer.optim_step("run", params)
        [output] = trainer.forward_backward([batch("run", data)])
    assert output.metrics["loss:sum"] < 0.8 * first.metrics["loss:sum"]
    trainer.optim_step("run", params)
    (tmp_path / "saved").mkdir()
    trainer.save_run("run", tmp_path / "saved", optimizer=True)
    trainer.load_run("resumed", str(folder), tmp_path / "saved", optimizer=True)
    trainer.load_run("cold", str(folder), tmp_path / "saved", optimizer=False)
    for name in ("run", "resumed", "cold"):
        trainer.forward_backward([batch(name, data)])
        trainer.optim_step(name, params)
    weights = {name: dict(trainer.run(name).adapter.parameters()) for name in ("run", "resumed", "cold")}
    for path, tensor in weights["run"].items():
        assert torch.equal(tensor, weights["resumed"][path]), path
    assert any(not torch.equal(tensor, weights["cold"][path]) for path, tensor in weights["run"].items())


def test_a_fresh_adapter_changes_nothing(folder: Path) -> None:
    trainer = make_trainer(folder)
    trainer.create_run("run", str(folder), AdapterConfig(rank=4, alpha=32.0, seed=0))
    data = random_examples(10)
    [output] = trainer.forward_backward([batch("run", data, forward_only=True)])
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for example, got in zip(data, output.logprobs, strict=True):
        with torch.no_grad():
            logits = plain(torch.from_numpy(example.tokens)[None]).logits[0].float()
        expected = logits.log_softmax(-1).gather(-1, torch.from_numpy(example.target_tokens)[:, None])[:, 0]
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)


def test_base_model_reports_its_sizes(folder: Path) -> None:
    model = BaseModel(info_of(folder), torch.device("cpu"), torch.float32)
    assert (model.layers, model.query_heads, model.kv_heads, model.head_size) == (2, 4, 2, 16)
