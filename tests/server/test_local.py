"""LocalServer: the whole server with the real engine, on a two-layer random model, without a port."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.tiny import make_tiny_model
from tinkerlite_server.errors import UnknownName
from tinkerlite_server.local import LocalServer


class Talk:
    """One client's side of a conversation."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def post(self, path: str, /, **body: Any) -> dict[str, Any]:
        response = await self._http.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    async def result(self, path: str, /, **body: Any) -> dict[str, Any]:
        accepted = await self.post(path, **body)
        answer = await self.post("/retrieve_future", request_id=accepted["request_id"])
        assert "error" not in answer, answer
        return answer


PROMPT = [5, 6, 7, 8]
BATCH = {
    "data": [
        {
            "model_input": {"chunks": [{"type": "encoded_text", "tokens": PROMPT[:-1]}]},
            "loss_fn_inputs": {"target_tokens": {"data": PROMPT[1:], "dtype": "int64"}},
        }
    ],
    "loss_fn": "cross_entropy",
}


async def train_save_sample_resume(talk: Talk, model: str) -> None:
    session = (await talk.post("/create_session"))["session_id"]
    lora = {"rank": 4, "seed": 1}
    created = await talk.result(
        "/create_model", session_id=session, model_seq_id=0, base_model=model, lora_config=lora
    )
    run = created["model_id"]
    before = await talk.result("/forward_backward", model_id=run, seq_id=1, forward_backward_input=BATCH)
    await talk.result("/optim_step", model_id=run, seq_id=2, adam_params={"learning_rate": 0.01})
    snapshot = await talk.result(
        "/save_weights_for_sampler", model_id=run, seq_id=3, sampling_session_seq_id=0
    )
    after = await talk.result("/forward", model_id=run, seq_id=4, forward_input=BATCH)
    assert after["metrics"]["loss:sum"] < before["metrics"]["loss:sum"]

    sampled = await talk.result(
        "/asample",
        sampling_session_id=snapshot["sampling_session_id"],
        seq_id=0,
        prompt={"chunks": [{"tokens": PROMPT}]},
        sampling_params={"max_tokens": 1},
        prompt_logprobs=True,
    )
    trained = after["loss_fn_outputs"][0]["logprobs"]["data"]
    assert sampled["prompt_logprobs"][1:] == pytest.approx(trained, abs=1e-4)

    path = (await talk.result("/save_weights", model_id=run, seq_id=5, path="end"))["path"]
    await talk.result("/load_weights", session_id=session, model_seq_id=1, path=path, optimizer=True)
    resumed = f"{session}:train:1"
    same = await talk.result("/forward", model_id=resumed, seq_id=1, forward_input=BATCH)
    assert same["loss_fn_outputs"] == after["loss_fn_outputs"]


def test_a_run_trains_saves_samples_and_resumes_in_process(tmp_path: Path):
    model = str(make_tiny_model(tmp_path / "tiny"))

    async def scenario() -> None:
        server = LocalServer([model])
        await server.startup()
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://local/api/v1") as http:
            await train_save_sample_resume(Talk(http), model)
        await server.shutdown()

    asyncio.run(scenario())


def test_its_data_is_gone_with_it_unless_it_was_given_a_folder(tmp_path: Path):
    model = str(make_tiny_model(tmp_path / "tiny"))

    async def folder_after(data_dir: Path | None) -> Path:
        server = LocalServer([model], data_dir=data_dir)
        await server.startup()
        used = server.app.state.service.settings.data_dir
        assert (used / "metadata.sqlite").exists()
        await server.shutdown()
        return used

    assert not asyncio.run(folder_after(None)).exists()
    assert asyncio.run(folder_after(tmp_path / "data")) == tmp_path / "data"
    assert (tmp_path / "data" / "metadata.sqlite").exists()


def test_an_unknown_model_is_said_at_once(tmp_path: Path):
    with pytest.raises(UnknownName, match="nothing"):
        LocalServer([str(tmp_path / "nothing")])
