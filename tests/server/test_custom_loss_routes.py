"""Uploading losses, and training by them: who may, how often, and for how long."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from tests.server.loss_graphs import GraphWriter, weighted_square
from tests.server.served import Caller, Served, datum, serving
from tests.server.toy_engine import ToyEngine
from tinkerlite_server.engine.protocols import LossProgram
from tinkerlite_server.errors import UnknownName
from tinkerlite_server.settings import Limits

BONUS = [1.0, 2.0, 3.0]
DATUM = datum(bonus=BONUS)


@pytest.fixture
def served(toy: ToyEngine, tmp_path: Path) -> Iterator[Served]:
    with serving(toy, tmp_path, custom_losses=True, limits=Limits(max_custom_losses=3)) as running:
        yield running


def upload(caller: Caller, session: str, number: int = 0, **changes: Any) -> str:
    """The id of a new loss."""
    answer = caller.ok("/create_custom_loss", **(weighted_square().body(session, number) | changes))
    result = caller.result(answer["request_id"])
    assert result["type"] == "create_custom_loss"
    return result["loss_id"]


def train(caller: Caller, model: str, seq_id: int, loss_id: Any, *data: Any) -> Any:
    config = {} if loss_id is None else {"loss_id": loss_id}
    return caller.post_forward_backward(model, seq_id, data or [DATUM], "custom", loss_fn_config=config)


def test_a_loss_is_uploaded_once_and_used_by_its_id(caller: Caller, toy: ToyEngine):
    session = caller.session()
    loss = upload(caller, session)
    assert loss == f"{session}:loss:0"
    model = caller.model(session)
    output = caller.gradients(train(caller, model, 1, loss, DATUM, DATUM).json()["request_id"])
    assert [sorted(each) for each in output.loss_fn_outputs] == [["logprobs"]] * 2
    assert output.metrics["loss:sum"] == pytest.approx(
        -sum(each["logprobs"].to_numpy().sum() for each in output.loss_fn_outputs)
    )
    assert toy.run(model).gradient.any()
    assert caller.result(caller.optim_step(model, 2))["metrics"]["step"] == 1.0


def test_the_handshake_and_the_capabilities_say_that_losses_are_taken(caller: Caller):
    assert caller.ok("/client/config")["custom_loss_server_side"] is True
    [model, _] = caller.get("/get_server_capabilities").json()["supported_models"]
    assert model["losses"][-1] == "custom"


def test_an_upload_sent_again_is_the_same_loss_and_its_number_names_no_other(caller: Caller):
    session = caller.session()
    body = weighted_square().body(session)
    assert caller.ok("/create_custom_loss", **body) == caller.ok("/create_custom_loss", **body)
    assert "other content" in caller.refused("/create_custom_loss", **(body | {"name": "other"}))
    assert upload(caller, session, 1) != upload(caller, session, 2)


def test_a_refused_upload_says_what_is_wrong_and_takes_no_number(caller: Caller):
    session = caller.session()
    body = weighted_square().body(session, name="broken")
    assert (
        caller.refused("/create_custom_loss", **body) == "custom loss 'broken': node 'exp': no such operation"
    )
    assert upload(caller, session)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"custom_loss_seq_id": -1}, "custom_loss_seq_id"),
        ({"name": 5}, "name: Input should be a valid string"),
        ({"name": "x" * 300}, "name: String should have at most 256 characters"),
        ({"inputs": [{"name": "logprobs", "rank": 3}]}, "inputs.0.rank: Input should be 0, 1 or 2 (it is 3)"),
        ({"inputs": "logprobs"}, "inputs: Input should be a valid list"),
        ({"graph": None}, "graph: Input should be"),
        ({"graph": {"format": 2, "nodes": []}}, "graph.format: Input should be 1 (it is 2)"),
        ({"graph": {"format": 1}}, "graph.nodes: Field required"),
        ({"graph": {"nodes": [{"op": "output", "name": "o"}]}}, "graph.nodes.0.target: Field required"),
        ({"graph": {"nodes": [5]}}, "graph.nodes.0"),
        ({"graph": {"nodes": [{"op": "o", "name": "o", "target": "o", "args": {}}]}}, "nodes.0.args"),
        ({"graph": {"nodes": [{"op": "o", "name": "o", "target": "o", "kwargs": []}]}}, "nodes.0.kwargs"),
    ],
)
def test_a_body_of_another_form_is_refused(caller: Caller, fields: dict[str, Any], message: str):
    body = weighted_square().body(caller.session()) | fields
    assert message in caller.refused("/create_custom_loss", **body)


def test_an_upload_is_of_bounded_size(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, custom_losses=True, limits=Limits(max_loss_bytes=10_000)) as running:
        caller = running.caller()
        body = weighted_square().body(caller.session())
        assert caller.ok("/create_custom_loss", **body)
        body = body | {"custom_loss_seq_id": 1, "padding": "x" * 10_000}
        assert "larger than the 10000 bytes" in caller.refused("/create_custom_loss", status=413, **body)
        packed = zstandard.compress(json.dumps(body).encode())
        assert len(packed) < 10_000
        headers = {"Content-Type": "application/json", "Content-Encoding": "zstd"}
        response = caller.request("POST", "/create_custom_loss", content=packed, headers=headers)
        assert (response.status_code, "10000 bytes once it is unpacked" in response.text) == (413, True)


def test_a_session_has_a_bounded_number_of_losses(caller: Caller):
    session = caller.session()
    for number in range(3):
        upload(caller, session, number)
    body = weighted_square().body(session, 3)
    assert "has 3 custom losses, and this server keeps no more" in caller.refused(
        "/create_custom_loss", **body
    )
    assert upload(caller, caller.session())


def test_losses_belong_to_their_session_and_its_owner(served: Served, caller: Caller):
    session = caller.session()
    loss = upload(caller, session)
    other = served.caller("tml-other")
    body = weighted_square().body(session, 1)
    assert "there is no session" in other.refused("/create_custom_loss", status=404, **body)
    # Another session of the same caller has no such loss either.
    elsewhere = caller.model()
    response = train(caller, elsewhere, 1, loss)
    assert response.status_code == 404
    assert f"has no custom loss {loss!r}; it has []" in response.json()["detail"]


def test_losses_end_with_their_session(served: Served, caller: Caller):
    session = caller.session()
    loss = upload(caller, session)
    losses = served.service.custom_losses
    assert losses is not None
    assert losses.get(session, loss).graph.name == "mine"
    caller.ok(f"/sessions/{session}/finish", reason={"type": "success"})
    with pytest.raises(UnknownName, match="has no custom loss"):
        losses.get(session, loss)
    body = weighted_square().body(session, 1)
    assert "has ended" in caller.refused("/create_custom_loss", status=410, **body)


def test_a_loss_that_is_kept_just_after_its_session_ended_is_let_go_of(
    served: Served, caller: Caller, monkeypatch: pytest.MonkeyPatch
):
    """Sessions end on another thread, at any moment."""
    session = caller.session()
    losses = served.service.custom_losses
    keep = losses.add

    def end_and_keep(session_id: str, program: LossProgram) -> None:
        served.service.end_session(session_id, "it was closed")
        keep(session_id, program)

    monkeypatch.setattr(losses, "add", end_and_keep)
    body = weighted_square().body(session)
    assert "has ended" in caller.refused("/create_custom_loss", status=410, **body)
    with pytest.raises(UnknownName, match=r"it has \[\]"):
        losses.get(session, f"{session}:loss:0")


@pytest.mark.parametrize(
    ("loss_id", "data", "status", "message"),
    [
        (None, DATUM, 400, "takes one option, the text 'loss_id', and has {}"),
        (7.0, DATUM, 400, "takes one option, the text 'loss_id', and has {'loss_id': 7.0}"),
        ("nothing", DATUM, 404, "has no custom loss 'nothing'"),
        ("mine", datum(), 400, "data[0].loss_fn_inputs lacks ['bonus'], which custom loss 'mine' reads"),
        (
            "mine",
            datum(bonus=[[1.0], [2.0], [3.0]]),
            400,
            "['bonus'] has shape (3, 1), and the custom loss declares bonus with rank 1",
        ),
        ("mine", datum(bonus=[1.0, np.nan, 0.0]), 400, "['bonus'] is nan at [1]; it must be finite"),
        ("mine", datum((1, 2), [[2, 3], [3, 4]], bonus=[1.0, 1.0]), 400, "custom wants (2,), one row per"),
        ("mine", datum((1, 99), (2, 3), bonus=[1.0, 1.0]), 400, "has token id 99"),
    ],
)
def test_a_batch_that_does_not_fit_its_loss_is_refused_and_uses_up_its_number(
    caller: Caller, loss_id: Any, data: Any, status: int, message: str
):
    session = caller.session()
    loss = upload(caller, session)
    model = caller.model(session)
    response = train(caller, model, 1, loss if loss_id == "mine" else loss_id, data)
    assert (response.status_code, message in response.json()["detail"]) == (status, True), response.text
    message, _ = caller.failure(caller.optim_step(model, 2))
    assert "forward_backward 1 was refused" in message


def test_inputs_that_a_loss_does_not_read_are_not_its_concern(caller: Caller):
    session = caller.session()
    loss = upload(caller, session)
    extra = datum(bonus=BONUS, mask=[1.0], advantages=[[np.inf]])
    caller.gradients(train(caller, caller.model(session), 1, loss, extra).json()["request_id"])


def test_integers_stay_integers_and_a_number_may_come_without_a_shape(caller: Caller, toy: ToyEngine):
    write = GraphWriter(logprobs=2, ids=1, scale=0)
    graph = write.returns(write.method("sum", write.input()))
    session = caller.session()
    answer = caller.ok("/create_custom_loss", **graph.body(session))
    loss = caller.result(answer["request_id"])["loss_id"]
    data = datum((1, 2), [[2, 3], [3, 4]], ids=np.array([7]), scale=np.float32(2.0).reshape(1))
    caller.gradients(train(caller, caller.model(session), 1, loss, data).json()["request_id"])
    [example] = toy.batches[-1].examples
    assert (example.inputs["ids"].dtype, example.inputs["ids"].tolist()) == (np.int64, [7])
    assert (example.inputs["scale"].shape, float(example.inputs["scale"])) == ((), 2.0)


def test_a_server_that_takes_no_losses_says_how_to_make_it(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path) as running:
        caller = running.caller()
        assert caller.ok("/client/config")["custom_loss_server_side"] is False
        session = caller.session()
        body = weighted_square().body(session)
        assert "tinkerlite serve --custom-losses" in caller.refused("/create_custom_loss", **body)
        model = caller.model(session)
        response = train(caller, model, 1, "x")
        assert response.status_code == 400
        assert "tinkerlite serve --custom-losses" in response.json()["detail"]
