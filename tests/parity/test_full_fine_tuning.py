"""Training all weights: gradients are transformers' and autograd's, steps are torch.optim.AdamW's, and the
sampler, the trainer and transformers agree on the weights, in memory and from disk."""

import gc
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.parity.test_gradients import batch, padded_loss, random_examples, relative
from tests.tiny import Arch, make_tiny_model
from tinkerlite.types import AdamParams
from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.full_model import parameter_count, training_bytes
from tinkerlite_server.engine.local_engine import LocalEngine
from tinkerlite_server.engine.protocols import (
    AdapterConfig,
    EngineLimits,
    Example,
    SampleResult,
    SampleWork,
    TrainOutput,
)
from tinkerlite_server.errors import BadRequest, NoRoom, ServerError

MODELS: dict[str, dict[str, Any]] = {
    "llama, tied": {"arch": "llama"},
    "llama": {"arch": "llama", "tie_embeddings": False},
    "qwen2": {"arch": "qwen2", "tie_embeddings": False},
    "qwen3, tied": {"arch": "qwen3"},
}


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "base", seed=3, **MODELS[request.param])


@pytest.fixture(scope="module")
def one_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arch: Arch = "llama"
    return make_tiny_model(tmp_path_factory.mktemp("model") / "base", seed=3, arch=arch)


def make_engine(folder: Path, **limits: Any) -> LocalEngine:
    settings = EngineLimits(**{"device": "cpu", "dtype": "float32", "max_pass_tokens": 64, **limits})
    return LocalEngine(build_catalog([str(folder)], settings), settings)


def with_run(folder: Path, **limits: Any) -> LocalEngine:
    engine = make_engine(folder, head_chunk=7, **limits)
    engine.create_run("run", str(folder), None)
    return engine


def twin_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def trained(engine: LocalEngine, data: Sequence[Example], run: str = "run", **kwargs: Any) -> TrainOutput:
    [output] = engine.forward_backward([batch(run, list(data), **kwargs)])
    assert not isinstance(output, ServerError), output
    return output


def weights(engine: LocalEngine, run: str = "run") -> dict[str, torch.Tensor]:
    return dict(engine._trainer.run(run).weights.parameters())


def scored(engine: LocalEngine, folder: Path, tokens: Any, adapter_id: str | None) -> np.ndarray:
    """The sampler's logprobs of tokens after the first."""
    work = SampleWork(
        key="scoring",
        base_model=str(folder),
        adapter_id=adapter_id,
        prompt=np.asarray(tokens),
        num_samples=1,
        max_tokens=1,
        seeds=(0,),
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        stop_ids=frozenset(),
        prompt_logprobs=True,
    )
    engine.submit(work)
    [result] = [each for _ in range(50) if engine.has_work for each in engine.step()]
    assert isinstance(result, SampleResult)
    assert not isinstance(result.outcome, ServerError), result.outcome
    assert result.outcome.prompt_logprobs_np is not None
    return result.outcome.prompt_logprobs_np[1:]


def transformers_logprobs(model: Any, tokens: Any) -> np.ndarray:
    ids = torch.as_tensor(np.asarray(tokens))
    with torch.no_grad():
        table = model(ids[None]).logits[0].float().log_softmax(-1)
    return table[:-1].gather(-1, ids[1:, None])[:, 0].numpy()


# ---- gradients and steps ----


def test_gradients_of_all_weights_equal_transformers_and_autograds_on_padded_batches(folder: Path) -> None:
    engine, twin = with_run(folder), twin_of(folder)
    data = random_examples(1, prefix=12, count=6)
    output = trained(engine, data)
    loss = padded_loss(twin, data)
    loss.backward()
    assert output.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5, abs=1e-4)
    expected = dict(twin.named_parameters())
    got = weights(engine)
    assert got.keys() == expected.keys()
    for name, weight in got.items():
        assert relative(weight.grad, expected[name].grad) < 1e-4, name


def test_steps_are_those_of_torchs_adamw_on_transformers_gradients(folder: Path) -> None:
    engine, twin = with_run(folder), twin_of(folder)
    reference = torch.optim.AdamW(twin.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    params = AdamParams(
        learning_rate=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, grad_clip_norm=1.0
    )
    for seed in range(4):
        data = random_examples(seed, count=6)
        trained(engine, data[:2])
        trained(engine, data[2:])
        figures = engine.optim_step("run", params)
        padded_loss(twin, data).backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        reference.step()
        reference.zero_grad()
        assert figures["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    expected = dict(twin.named_parameters())
    for name, weight in weights(engine).items():
        # Adam divides by the gradient's size, so an entry whose gradient is all rounding may go either way.
        moved = expected[name].detach() - dict(twin_of(folder).named_parameters())[name].detach()
        assert (weight.detach() - expected[name].detach()).norm() < 1e-2 * moved.norm(), name
    tokens = random_examples(9, count=1)[0].tokens
    engine.snapshot("run", "after")
    np.testing.assert_allclose(
        scored(engine, folder, tokens, "after"), transformers_logprobs(twin, tokens), atol=1e-3
    )


def test_many_passes_give_the_gradient_of_one(one_folder: Path) -> None:
    data = random_examples(4, prefix=20, count=8)
    small, large = with_run(one_folder), make_engine(one_folder, max_pass_tokens=10_000, head_chunk=10_000)
    large.create_run("run", str(one_folder), None)
    for engine in (small, large):
        trained(engine, data)
    for name, weight in weights(small).items():
        assert relative(weight.grad, weights(large)[name].grad) < 1e-5, name


def test_only_looking_leaves_no_gradient_and_sees_the_same(one_folder: Path) -> None:
    engine, data = with_run(one_folder), random_examples(6)
    looked = trained(engine, data, forward_only=True)
    assert all(weight.grad is None for weight in weights(engine).values())
    for seen, got in zip(looked.logprobs, trained(engine, data).logprobs, strict=True):
        np.testing.assert_allclose(seen, got, atol=1e-6)


def test_runs_of_all_weights_and_of_an_adapter_train_side_by_side_as_each_would_alone(
    one_folder: Path,
) -> None:
    data = {name: random_examples(seed) for seed, name in enumerate(("run", "other", "lora"))}
    together = with_run(one_folder)
    together.create_run("other", str(one_folder), None)
    together.create_run("lora", str(one_folder), AdapterConfig(rank=4, alpha=32.0, seed=0))
    outputs = together.forward_backward([batch(name, each) for name, each in data.items()])
    assert not [output for output in outputs if isinstance(output, ServerError)]
    alone = with_run(one_folder)
    trained(alone, data["run"])
    for name, weight in weights(together).items():
        assert relative(weight.grad, weights(alone)[name].grad) < 1e-6, name
        assert weight.grad is not weights(together, "other")[name].grad
    assert any(tensor.grad is not None for tensor in weights(together, "lora").values())
    together.optim_step("run", AdamParams(learning_rate=1e-2))
    for name, weight in weights(together, "other").items():
        torch.testing.assert_close(weight, dict(twin_of(one_folder).named_parameters())[name])


def test_a_request_that_fails_keeps_none_of_its_gradients(one_folder: Path) -> None:
    engine, data, broken = with_run(one_folder), random_examples(7), random_examples(8, count=12)
    trained(engine, data)
    before = {name: weight.grad.clone() for name, weight in weights(engine).items()}
    broken[-1].inputs["weights"][-1] = np.inf
    [failed] = engine.forward_backward([batch("run", broken)])
    assert isinstance(failed, BadRequest)
    for name, weight in weights(engine).items():
        assert torch.equal(weight.grad, before[name]), name
    engine.discard_gradients("run")
    assert all(weight.grad is None for weight in weights(engine).values())


@pytest.mark.parametrize("tied", [True, False])
def test_in_bfloat16_gradients_are_those_of_fp32_up_to_its_rounding_and_weights_stay_fp32(
    tmp_path: Path, tied: bool
) -> None:
    folder = make_tiny_model(tmp_path / "model", seed=3, tie_embeddings=tied)
    coarse, exact = with_run(folder, dtype="bfloat16"), with_run(folder)
    data = random_examples(1, prefix=12, count=8)
    for engine in (coarse, exact):
        trained(engine, data)
    for name, weight in weights(coarse).items():
        assert weight.dtype == weight.grad.dtype == torch.float32
        assert relative(weight.grad, weights(exact)[name].grad) < 5e-2, name
    coarse.optim_step("run", AdamParams(learning_rate=1e-6))
    changed = dict(twin_of(folder).named_parameters())
    # Smaller than what bfloat16 could add to a weight, and kept.
    assert all(not torch.equal(weight, changed[name]) for name, weight in weights(coarse).items())


# ---- from the trainer to the sampler ----


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_a_snapshot_scores_as_the_trainer_does_and_stays_as_it_was(
    one_folder: Path, dtype: str, bound: float
) -> None:
    engine = with_run(one_folder, dtype=dtype)
    example = random_examples(5, count=1)[0]
    full = np.append(example.tokens, example.target_tokens[-1])
    trained(engine, random_examples(1))
    engine.optim_step("run", AdamParams(learning_rate=1e-2))
    engine.snapshot("run", "one step")
    now = trained(engine, [example], forward_only=True).logprobs[0]
    seen = scored(engine, one_folder, full, "one step")
    assert np.abs(seen - now).mean() < bound
    assert np.abs(seen - scored(engine, one_folder, full, None)).mean() > 10 * bound
    trained(engine, random_examples(2))
    engine.optim_step("run", AdamParams(learning_rate=1e-2))
    assert np.array_equal(scored(engine, one_folder, full, "one step"), seen)


def test_samples_of_two_snapshots_and_the_base_run_side_by_side(one_folder: Path) -> None:
    engine = with_run(one_folder)
    for number in range(2):
        trained(engine, random_examples(number))
        engine.optim_step("run", AdamParams(learning_rate=1e-2))
        engine.snapshot("run", f"step {number}")
    works = [
        SampleWork(
            key=str(adapter_id),
            base_model=str(one_folder),
            adapter_id=adapter_id,
            prompt=np.arange(5, 25),
            num_samples=2,
            max_tokens=8,
            seeds=(1, 2),
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            stop_ids=frozenset(),
        )
        for adapter_id in (None, "step 0", "step 1")
    ]
    found = {}
    for together in (True, False):
        results = []
        for work in works:
            engine.submit(work)
            while engine.has_work and not together:
                results += engine.step()
        if together:
            # Dropped by name at once, and kept by the samples that run.
            results += engine.step()
            engine.drop_adapter("step 0")
            assert not engine.has_adapter("step 0")
        while engine.has_work:
            results += engine.step()
        engine.snapshot("run", "step 0")
        found[together] = {result.key: result.outcome for result in results}
    assert not isinstance(found[True]["step 0"], ServerError)
    assert len({tuple(outcome.sequences[0].tokens) for outcome in found[True].values()}) == 3
    for key in ("None", "step 1"):
        assert found[True][key].sequences[0].tokens == found[False][key].sequences[0].tokens


# ---- files ----


def test_a_saved_run_goes_on_exactly_and_its_folder_loads_in_transformers(
    folder: Path, tmp_path: Path
) -> None:
    engine, data = with_run(folder), random_examples(9, count=4)
    params = AdamParams(learning_rate=1e-2, grad_clip_norm=1.0, weight_decay=0.01)
    for _ in range(3):
        trained(engine, data)
        engine.optim_step("run", params)
    saved = tmp_path / "saved"
    saved.mkdir()
    engine.save_run("run", saved, optimizer=True)

    elsewhere = make_engine(folder, head_chunk=7)
    assert elsewhere.load_run("resumed", str(folder), saved, optimizer=True) is None
    assert elsewhere.load_run("cold", str(folder), saved, optimizer=False) is None
    elsewhere.load_adapter("sampler", str(folder), saved)
    tokens = random_examples(3, count=1)[0].tokens
    expected = transformers_logprobs(twin_of(saved), tokens)
    np.testing.assert_allclose(scored(elsewhere, folder, tokens, "sampler"), expected, atol=2e-5)
    text = "What is two and three?"
    assert AutoTokenizer.from_pretrained(saved).encode(text) == AutoTokenizer.from_pretrained(folder).encode(
        text
    )

    for trainer, run in ((engine, "run"), (elsewhere, "resumed"), (elsewhere, "cold")):
        trained(trainer, data, run)
        trainer.optim_step(run, params)
    for name, weight in weights(engine).items():
        assert torch.equal(weight, weights(elsewhere, "resumed")[name]), name
    assert any(not torch.equal(w, weights(elsewhere, "cold")[name]) for name, w in weights(engine).items())


def test_weights_to_sample_from_are_saved_in_the_servers_dtype_without_optimizer_state(
    one_folder: Path, tmp_path: Path
) -> None:
    engine = with_run(one_folder, dtype="bfloat16")
    trained(engine, random_examples(1))
    engine.optim_step("run", AdamParams(learning_rate=1e-2))
    engine.save_run("run", tmp_path, optimizer=False)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert not list(tmp_path.glob("optimizer*"))
    engine.snapshot("run", "in memory")
    engine.load_adapter("from disk", str(one_folder), tmp_path)
    tokens = random_examples(3, count=1)[0].tokens
    in_memory, from_disk = (scored(engine, one_folder, tokens, id_) for id_ in ("in memory", "from disk"))
    assert np.array_equal(in_memory, from_disk)
    with pytest.raises(BadRequest, match=r"has no optimizer state"):
        engine.load_run("run", str(one_folder), tmp_path, optimizer=True)
    assert len(weights(engine)) > 0


def test_weights_of_a_model_with_another_vocabulary_do_not_take_the_base_models_place(
    one_folder: Path, tmp_path: Path
) -> None:
    other = make_tiny_model(tmp_path / "other", extra_rows=3)
    engine = make_engine(one_folder)
    for load in (
        lambda: engine.load_run("run", str(one_folder), other, optimizer=False),
        lambda: engine.load_adapter("sampler", str(one_folder), other),
    ):
        with pytest.raises(BadRequest, match="a model with 515 tokens and a context of 512, and base model"):
            load()


# ---- memory ----


def test_what_does_not_fit_is_refused_with_the_bytes_that_it_takes_and_the_flag(one_folder: Path) -> None:
    engine = make_engine(one_folder, max_full_bytes=1000)
    needed = training_bytes(parameter_count(one_folder), torch.float32)
    with pytest.raises(NoRoom, match=rf"takes {needed:,} bytes, and 1,000 of the 1,000 .*--full-gib"):
        engine.create_run("run", str(one_folder), None)
    engine.create_run("lora", str(one_folder), AdapterConfig(rank=2, alpha=32.0, seed=0))


def test_what_the_machine_has_no_memory_for_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 2**16, "intermediate_size": 2**20, "head_dim": 2**14}
    (folder / "config.json").write_text(json.dumps(config))
    engine = make_engine(folder, max_full_bytes=2**62)
    with pytest.raises(NoRoom, match=r"takes [\d,]{15,} bytes, and cpu has [\d,]+ free"):
        engine.create_run("run", str(folder), None)


def test_what_is_dropped_is_free_at_once(one_folder: Path) -> None:
    engine = with_run(one_folder)
    trained(engine, random_examples(1))
    engine.optim_step("run", AdamParams())
    engine.snapshot("run", "snapshot")
    master = weakref.ref(next(iter(weights(engine).values())))
    copied = weakref.ref(engine._sampler._adapters["snapshot"][1])
    gc.collect()
    gc.disable()
    try:
        engine.drop_run("run")
        engine.drop_adapter("snapshot")
        assert (master(), copied()) == (None, None)
    finally:
        gc.enable()


def test_a_second_run_waits_for_room_and_a_run_never_makes_room_for_anything(one_folder: Path) -> None:
    parameters = parameter_count(one_folder)
    assert parameters == sum(p.numel() for p in twin_of(one_folder).parameters())
    room = training_bytes(parameters, torch.float32) + 2 * 4 * parameters
    engine = with_run(one_folder, max_full_bytes=room, max_models_bytes=1)
    engine.snapshot("run", "one")
    engine.snapshot("run", "two")
    with pytest.raises(NoRoom) as refusal:
        engine.snapshot("run", "three")
    assert set(refusal.value.freeable) == {"one", "two"}
    with pytest.raises(NoRoom):
        engine.create_run("other", str(one_folder), None)
    engine.drop_adapter("one")
    engine.snapshot("run", "three")
    trained(engine, random_examples(1))
    engine.drop_run("run")
    engine.create_run("other", str(one_folder), None)
