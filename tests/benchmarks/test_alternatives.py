"""What is done for the alternatives before they do their part. None of their packages is needed here."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import clients
from benchmarks.alternatives import skyrl_server, transformers_peft, trl_trainers, vllm_cpu
from benchmarks.busy_core import busy_core
from benchmarks.work import Job, Work
from tests.tiny import make_tiny_model

# ---- transformers and PEFT ----


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["generate", "sample_turns", "score", "train", "rl_step", "opd_step", "request"]
)
def test_every_measurement_of_transformers_runs_in_either_dtype(name: str, dtype: str, tmp_path: Path):
    folder = str(make_tiny_model(tmp_path / "model", tie_embeddings=False))
    rank = 4 if name in ("generate", "train", "rl_step", "opd_step") else 0
    samples = 1 if name == "sample_turns" else 2
    work = Work(groups=2, samples=samples, prompt=5, tokens=4, turns=2, rank=rank)
    job = Job(function="", model=folder, folder=folder, dtype=dtype, vocab_size=300, work=work, repeats=2)
    for values in getattr(transformers_peft, name)(job).values():
        assert all(value > 0 for value in values)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_multiplies_with_factors_of_the_model_s_dtype_and_trains_masters(tmp_path: Path):
    folder = str(make_tiny_model(tmp_path / "model", tie_embeddings=False))
    job = Job(function="", model=folder, folder=folder, dtype="bfloat16", work=Work())
    for trains, dtype in ((False, torch.bfloat16), (True, torch.float32)):
        model = transformers_peft._with_lora(transformers_peft._model(job), 4, trains=trains)
        assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {dtype}


# ---- vLLM ----


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_adapter_that_is_written_for_vllm_is_one_that_peft_loads(tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = make_tiny_model(tmp_path / "model")
    vllm_cpu.write_adapter_files(str(model), 4, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "adapter")
    factors = {name: value for name, value in loaded.named_parameters() if "lora_" in name}
    assert len(factors) == 2 * 2 * 7  # A and B, in two layers, of seven projections
    assert all(value.abs().sum() > 0 for value in factors.values())
    assert {value.shape[0] for name, value in factors.items() if "lora_A" in name} == {4}


# ---- SkyRL ----


def test_skyrl_gets_the_same_weights_under_a_configuration_that_names_the_dtype(tmp_path: Path):
    model = make_tiny_model(tmp_path / "model")
    copy = skyrl_server._model_in("bfloat16", model, tmp_path / "copy")
    assert json.loads((copy / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((model / "config.json").read_text())["dtype"] == "float32"
    assert {path.name for path in copy.iterdir()} == {path.name for path in model.iterdir()}
    weights = "model.safetensors"
    assert (copy / weights).resolve() == (model / weights).resolve()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_memory_is_that_since_peaks_were_forgotten():
    held = bytearray(200 * 2**20)
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    before = skyrl_server._peak_rss_mib(os.getpid())
    del held
    skyrl_server._forget_peaks(os.getpid())
    assert skyrl_server._peak_rss_mib(os.getpid()) < before - 150


# ---- TRL ----


def test_prompts_for_trl_are_texts_of_exactly_so_many_tokens(tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path / "model"))
    texts = trl_trainers._texts(tokenizer, 5, 7)
    assert [len(tokenizer(text)["input_ids"]) for text in texts] == [7] * 5
    assert len(set(texts)) == 5


@pytest.mark.parametrize("sequences", [1, 16, 60, 64])
def test_trl_gets_batches_of_one_size_that_fit(sequences: int):
    job = Job(function="", model="", work=Work(groups=sequences, prompt=64, tokens=128))
    arguments = trl_trainers._arguments(job, 3, "")
    size, count = (arguments[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps"))
    assert size * count == sequences
    assert size * (64 + 128) <= trl_trainers.MICRO_BATCH_TOKENS
    assert not arguments["bf16"]
    assert trl_trainers._arguments(replace(job, dtype="bfloat16"), 3, "")["bf16"]


# ---- clients ----


def test_an_installation_is_the_client_and_what_it_needs_and_nothing_else_that_is_there():
    measured = clients.our_installation(Job(function="", model="", work=Work()))
    [packages], [mebibytes] = measured["packages"], measured["mebibytes"]
    # What its distribution declares, and what that needs. torch alone has hundreds of MiB.
    assert 7 < packages < 30
    assert 20 < mebibytes < 200


def test_a_submission_costs_cpu_time_that_grows_with_what_is_submitted():
    def milliseconds(datums: int) -> float:
        job = Job(function="", model="", work=Work(groups=datums, tokens=256), repeats=3)
        return min(clients.our_submission(job)["cpu_milliseconds"])

    assert 0 < milliseconds(1) < milliseconds(64)


def test_a_program_that_fails_says_with_which_words():
    with pytest.raises(RuntimeError, match="ModuleNotFoundError: No module named 'no_such_client'"):
        clients._import("no_such_client", clients.sys.executable, 1)


# ---- a busy core ----


def test_a_busy_core_is_busy_for_as_long_as_the_block_lasts():
    def children() -> float:
        spent = os.times()
        return spent.children_user + spent.children_system

    before = children()
    with busy_core():
        time.sleep(0.5)
    spent = children() - before  # of processes that have ended
    assert spent > 0.1
    time.sleep(0.2)
    assert children() == pytest.approx(before + spent)
