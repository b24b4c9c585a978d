"""A public checkpoint: everyone's to read, load, sample from and copy; its owner's alone to change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.served import Caller, serving
from tests.server.toy_engine import ToyEngine


@pytest.fixture
def callers(toy: ToyEngine, tmp_path: Path) -> Iterator[tuple[Caller, Caller]]:
    with serving(toy, tmp_path, api_keys=["tml-mine", "tml-yours"]) as running:
        yield running.caller("tml-mine"), running.caller("tml-yours")


@pytest.fixture
def mine(callers: tuple[Caller, Caller]) -> Caller:
    return callers[0]


@pytest.fixture
def yours(callers: tuple[Caller, Caller]) -> Caller:
    return callers[1]


def url(path: str, suffix: str = "") -> str:
    run, kind, name = path.removeprefix("tinker://").split("/")
    return f"/training_runs/{run}/checkpoints/{kind}/{name}{suffix}"


def publish(caller: Caller, path: str) -> None:
    assert caller.request("POST", url(path, "/publish")).status_code == 204


def test_a_public_checkpoint_is_loaded_and_sampled_from_by_another_owner(
    mine: Caller, yours: Caller, toy: ToyEngine
):
    model = mine.model()
    mine.forward_backward(model, 1)
    mine.optim_step(model, 2)
    path = mine.save(model, 3, "a")["path"]
    publish(mine, path)
    assert yours.ok("/weights_info", tinker_path=path)["lora_rank"] == 4
    session = yours.session()
    sampler = yours.sampler(session, model_path=path)
    theirs, own = yours.sample(sampler).sequences[0], mine.sample(mine.sampler(model_path=path)).sequences[0]
    assert (theirs.tokens, theirs.logprobs) == (own.tokens, own.logprobs)
    loaded = yours.ok("/load_weights", session_id=session, model_seq_id=0, path=path, optimizer=True)
    copy = yours.result(loaded["request_id"])["model_id"]
    assert (toy.run(copy).table == toy.run(model).table).all()
    assert toy.run(copy).steps == 1


def test_what_another_owner_may_not_do_to_a_public_checkpoint(mine: Caller, yours: Caller):
    path = mine.save(mine.model(), 1, "a")["path"]
    publish(mine, path)
    for method, suffix, body in (
        ("DELETE", "", None),
        ("DELETE", "/publish", None),
        ("POST", "/publish", None),
        ("PUT", "/ttl", {"ttl_seconds": 3600}),
    ):
        response = yours.request(method, url(path, suffix), json=body)
        assert response.status_code == 404
        assert "only its owner may change it" in response.json()["detail"]
    assert mine.ok("/weights_info", tinker_path=path)


def test_a_public_checkpoint_is_listed_as_public_and_shows_nothing_private_beside_it(
    mine: Caller, yours: Caller
):
    model = mine.model()
    public, private = (mine.save(model, seq, name)["path"] for seq, name in ((1, "a"), (2, "b")))
    publish(mine, public)
    flags = {each["tinker_path"]: each["public"] for each in mine.get("/checkpoints").json()["checkpoints"]}
    assert flags == {public: True, private: False}
    [seen] = yours.get(f"/training_runs/{model}/checkpoints").json()["checkpoints"]
    assert (seen["tinker_path"], seen["public"]) == (public, True)
    run = yours.get(f"/training_runs/{model}?access_scope=accessible").json()
    assert run["last_checkpoint"]["tinker_path"] == public
    assert run["model_owner"] == "someone else"
    assert yours.get("/checkpoints").json()["checkpoints"] == []


def test_the_scope_says_whether_runs_of_others_are_listed(mine: Caller, yours: Caller):
    public, private = mine.model(), mine.model()
    publish(mine, mine.save(public, 1, "a")["path"])
    assert yours.get(f"/training_runs/{public}").status_code == 404
    assert yours.get(f"/training_runs/{private}?access_scope=accessible").status_code == 404
    own = yours.model()
    for scope, expected in (("owned", {own}), ("accessible", {own, public})):
        listing = yours.get(f"/training_runs?access_scope={scope}").json()
        assert {each["training_run_id"] for each in listing["training_runs"]} == expected
        assert listing["cursor"]["total_count"] == len(expected)
    response = yours.get("/training_runs?access_scope=everything")
    assert response.status_code == 400
    assert "access_scope" in response.json()["detail"]


def test_an_unpublished_checkpoint_is_private_again_and_what_was_made_of_it_goes_on(
    mine: Caller, yours: Caller
):
    path = mine.save(mine.model(), 1, "a")["path"]
    publish(mine, path)
    sampler = yours.sampler(model_path=path)
    for _ in range(2):  # the second time changes nothing
        assert mine.request("DELETE", url(path, "/publish")).status_code == 204
    yours.refused("/weights_info", status=404, tinker_path=path)
    assert yours.sample(sampler).sequences
    assert mine.request("DELETE", url(path)).status_code == 204
    mine.server.service.sweep()
    assert yours.sample(sampler, 1).sequences


def test_publishing_twice_is_no_conflict(mine: Caller):
    path = mine.save(mine.model(), 1, "a")["path"]
    publish(mine, path)
    publish(mine, path)
    assert mine.request("POST", url(f"{path}-other", "/publish")).status_code == 404


# ---- copies, and weights read with another's key ----


def test_a_copy_is_the_callers_own_and_outlives_the_original(mine: Caller, yours: Caller):
    path = mine.save(mine.model(), 1, "a")["path"]
    publish(mine, path)
    session = yours.session()
    body = {"source_path": path, "session_id": session, "model_seq_id": 3}
    copy = yours.ok("/copy_weights", **body)["tinker_path"]
    assert copy == f"tinker://{session}:train:3/weights/a"
    assert yours.ok("/copy_weights", **body)["tinker_path"] == copy  # sent again
    assert mine.request("DELETE", url(path)).status_code == 204
    mine.server.service.sweep()
    assert yours.sample(yours.sampler(model_path=copy)).sequences
    message = yours.refused(
        "/optim_step", status=404, model_id=f"{session}:train:3", seq_id=1, adam_params={}
    )
    assert f"it only holds a copy of {path}" in message
    mine.refused("/weights_info", status=404, tinker_path=copy)


def test_a_copy_into_a_project_happens_once_however_often_it_is_sent(mine: Caller):
    path = mine.save(mine.model(), 1, "a")["path"]
    body = {"source_path": path, "destination_project_id": "archive", "ttl_seconds": 3600}
    first, again, other = (
        mine.request("POST", "/copy_weights", json=body, headers={"X-Idempotency-Key": key}).json()
        for key in ("one", "one", "two")
    )
    assert first == again != other
    listed = mine.get("/training_runs?project_id=archive").json()["training_runs"]
    assert {each["last_checkpoint"]["tinker_path"] for each in listed} == {
        first["tinker_path"],
        other["tinker_path"],
    }
    assert all(each["last_checkpoint"]["expires_at"] for each in listed)


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({}, 400, "name session_id and model_seq_id, or destination_project_id"),
        ({"session_id": "s"}, 400, "go together"),
        ({"model_seq_id": 1}, 400, "go together"),
        ({"session_id": "s", "model_seq_id": -1}, 400, "model_seq_id"),
        ({"session_id": "s", "model_seq_id": 1}, 404, "session 's'"),
        ({"destination_project_id": "p", "ttl_seconds": 5}, 400, "ttl_seconds is 5"),
        ({"destination_project_id": "p", "weights_access_token": "tml-other"}, 400, "is no API key"),
    ],
)
def test_a_copy_that_cannot_be_made_says_why(mine: Caller, fields: dict, status: int, message: str):
    path = mine.save(mine.model(), 1, "a")["path"]
    assert message in mine.refused("/copy_weights", status=status, source_path=path, **fields)


def test_a_load_with_a_token_that_is_none_uses_its_number_up(mine: Caller, yours: Caller):
    path = mine.save(mine.model(), 1, "a")["path"]
    run = yours.model()
    body = {"model_id": run, "seq_id": 1, "path": path, "optimizer": True}
    said = yours.refused("/load_weights", status=400, weights_access_token="tml-wrong", **body)
    assert f"load_weights 1 of {run}" in said
    assert yours.save(run, 2, "b")["path"]


def test_a_copy_never_takes_the_place_of_a_run(mine: Caller):
    session = mine.session()
    model = mine.model(session)
    path = mine.save(model, 1, "a")["path"]
    body = {"source_path": path, "session_id": session, "model_seq_id": 0}
    assert mine.ok("/copy_weights", **body)["tinker_path"] == path  # the very same files, under that name
    mine.save(model, 2, "b")
    assert "count model_seq_id up" in mine.refused(
        "/copy_weights", **{**body, "source_path": mine.save(mine.model(), 1, "c")["path"]}
    )


def test_another_owners_key_reads_weights_and_no_more(mine: Caller, yours: Caller):
    path = mine.save(mine.model(), 1, "a")["path"]
    body = {"session_id": yours.session(), "model_seq_id": 0, "path": path, "optimizer": True}
    yours.refused("/load_weights", status=404, **body)
    yours.refused("/load_weights", status=400, weights_access_token="tml-wrong", **body)
    answer = yours.ok("/load_weights", weights_access_token="tml-mine", **body)
    assert yours.result(answer["request_id"])["path"] == path
    copied = yours.request(
        "POST",
        "/copy_weights",
        json={"source_path": path, "destination_project_id": "p"},
        headers={"X-Tinker-Weights-Access-Token": "tml-mine"},
    ).json()
    assert yours.ok("/weights_info", tinker_path=copied["tinker_path"])
