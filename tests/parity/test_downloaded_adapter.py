"""What is trained here and downloaded is a PEFT adapter: same logprobs there as here."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from tests.parity.adapters_in_peft import IGNORED_WARNINGS, logprobs_in_peft
from tests.server.served import Caller, datum, serving
from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.local_engine import LocalEngine
from tinkerlite_server.engine.protocols import EngineLimits

pytestmark = pytest.mark.filterwarnings(*IGNORED_WARNINGS)

TOKENS = (5, 6, 7, 8, 9, 10)


@pytest.fixture(scope="module")
def caller(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    limits = EngineLimits(dtype="float32")
    engine = LocalEngine(build_catalog([str(student_folder)], limits), limits)
    with serving(engine, tmp_path_factory.mktemp("data")) as served:
        yield served.caller()


def trained(caller: Caller, base_model: Path, **lora: object) -> str:
    """A run of a few large steps, so that its adapter matters."""
    config = {"rank": 4, "seed": 1, **lora}
    body = {"session_id": caller.session(), "model_seq_id": 0, "base_model": str(base_model)}
    model = caller.result(caller.ok("/create_model", lora_config=config, **body)["request_id"])["model_id"]
    for step in range(3):
        caller.forward_backward(model, 2 * step + 1, [datum(TOKENS[:-1], TOKENS[1:])])
        caller.result(caller.optim_step(model, 2 * step + 2, learning_rate=0.01))
    return model


def logprobs_here(caller: Caller, model: str, seq_id: int) -> np.ndarray:
    request_id = caller.forward_backward(model, seq_id, [datum(TOKENS[:-1], TOKENS[1:])], forward_only=True)
    return caller.gradients(request_id).loss_fn_outputs[0]["logprobs"].to_numpy()


def fetch(caller: Caller, url: str) -> bytes:
    response = caller.server.call(caller.server.http.get(url))
    assert response.status_code == 200, response.text
    return response.content


@pytest.mark.parametrize("train_unembed", [True, False])
def test_external_weights_give_the_same_logprobs_in_peft(
    caller: Caller, student_folder: Path, tmp_path: Path, train_unembed: bool
):
    model = trained(caller, student_folder, train_unembed=train_unembed)
    answer = caller.ok("/save_weights_external", model_id=model, seq_id=7, path="final")
    caller.result(answer["request_id"])
    checkpoint = f"/training_runs/{model}/checkpoints/external_weights/final"
    for name, url in caller.get(f"{checkpoint}/external_weights_urls").json()["urls"].items():
        (tmp_path / name).write_bytes(fetch(caller, url))
    here = logprobs_here(caller, model, 8)
    np.testing.assert_allclose(logprobs_in_peft(student_folder, tmp_path, TOKENS), here, atol=1e-5)
    assert np.abs(logprobs_in_peft(student_folder, None, TOKENS) - here).max() > 0.1


def test_an_archive_of_sampler_weights_gives_the_same_logprobs_in_peft(
    caller: Caller, student_folder: Path, tmp_path: Path
):
    model = trained(caller, student_folder)
    answer = caller.ok("/save_weights_for_sampler", model_id=model, seq_id=7, path="final")
    caller.result(answer["request_id"])
    url = caller.get(f"/training_runs/{model}/checkpoints/sampler_weights/final/archive").json()["url"]
    with tarfile.open(fileobj=io.BytesIO(fetch(caller, url))) as tar:
        tar.extractall(tmp_path, filter="data")
    here = logprobs_here(caller, model, 8)
    np.testing.assert_allclose(logprobs_in_peft(student_folder, tmp_path, TOKENS), here, atol=1e-5)


VLLM_READS = {"r", "lora_alpha", "target_modules", "bias", "modules_to_save", "use_rslora", "use_dora"}
ATTENTION_AND_MLP = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_external_weights_without_the_unembedding_are_what_vllms_loader_asks_for(
    caller: Caller, student_folder: Path, tmp_path: Path
):
    """vLLM wants whole numbers for rank and alpha, plain LoRA, and tensors of linear layers alone, named

    base_model.model.<module path>.lora_A.weight; it goes by the tensors, and checks each module's last name.
    """
    model = trained(caller, student_folder, train_unembed=False)
    answer = caller.ok("/save_weights_external", model_id=model, seq_id=7, path="final")
    caller.result(answer["request_id"])
    checkpoint = f"/training_runs/{model}/checkpoints/external_weights/final"
    for name, url in caller.get(f"{checkpoint}/external_weights_urls").json()["urls"].items():
        (tmp_path / name).write_bytes(fetch(caller, url))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config.keys() >= VLLM_READS
    assert (type(config["r"]), type(config["lora_alpha"])) == (int, int)
    assert (config["r"], config["lora_alpha"]) == (4, 32)
    assert not config["use_rslora"]
    assert not config["use_dora"]
    assert config["modules_to_save"] is None
    assert set(config["target_modules"]) == ATTENTION_AND_MLP
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (no mapping)
            prefix, path, side = name.removesuffix(".weight").partition(".layers.")
            module, side = side.rpartition(".")[0], side.rpartition(".")[2]
            assert prefix == "base_model.model.model"
            assert module.rpartition(".")[2] in ATTENTION_AND_MLP
            assert side in ("lora_A", "lora_B")
            assert path
    card = (tmp_path / "README.md").read_text()
    assert "--max-lora-rank 8" in card


def test_the_readme_of_an_adapted_unembedding_warns_of_vllm(caller: Caller, student_folder: Path):
    model = trained(caller, student_folder)
    answer = caller.ok("/save_weights_external", model_id=model, seq_id=7, path="final")
    caller.result(answer["request_id"])
    checkpoint = f"/training_runs/{model}/checkpoints/external_weights/final"
    urls = caller.get(f"{checkpoint}/external_weights_urls").json()["urls"]
    assert "train_unembed=False" in fetch(caller, urls["README.md"]).decode()
