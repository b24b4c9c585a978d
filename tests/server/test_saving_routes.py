from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.server.served import Caller
from tests.server.toy_engine import ToyEngine


def test_a_saved_run_has_a_path_and_a_folder_of_files(caller: Caller, tmp_path: Path):
    model = caller.model()
    assert caller.save(model, 1, "step10") == {
        "path": f"tinker://{model}/weights/step10",
        "type": "save_weights",
    }
    [folder] = (tmp_path / "checkpoints").iterdir()
    assert folder.name.startswith(model.replace(":", ".") + ".weights.step10.")
    assert (folder / "adapter.npy").exists()


def test_a_save_without_a_name_gets_one(caller: Caller):
    model = caller.model()
    answer = caller.ok("/save_weights", model_id=model, seq_id=1)
    path = caller.result(answer["request_id"])["path"]
    assert re.fullmatch(rf"tinker://{model}/weights/[A-Za-z0-9_.-]+", path)


def test_a_name_is_taken_once_unless_it_is_to_be_overwritten(caller: Caller):
    model = caller.model()
    caller.save(model, 1, "a", user_metadata={"take": "1"})
    assert caller.save(model, 2, "a") == {
        "error": f"tinker://{model}/weights/a exists already; "
        "save under another name, or with overwrite=True",
        "category": "user",
    }
    assert caller.save(model, 3, "a", overwrite=True, user_metadata={"take": "2"})["path"]
    [checkpoint] = caller.get("/checkpoints").json()["checkpoints"]
    assert checkpoint["user_metadata"] == {"take": "2"}


def test_training_and_sampler_weights_may_share_a_name(caller: Caller):
    model = caller.model()
    caller.save(model, 1, "a")
    answer = caller.ok("/save_weights_for_sampler", model_id=model, seq_id=2, path="a")
    assert caller.result(answer["request_id"]) == {
        "path": f"tinker://{model}/sampler_weights/a",
        "sampling_session_id": None,
        "type": "save_weights_for_sampler",
    }


@pytest.mark.parametrize("kind", ["snapshot", "inflight"])
def test_unnamed_weights_come_as_a_sampling_session(caller: Caller, kind: str):
    session = caller.session()
    model = caller.model(session)
    answer = caller.ok(
        "/save_weights_for_sampler", model_id=model, seq_id=1, sampling_session_seq_id=7, kind=kind
    )
    assert caller.result(answer["request_id"]) == {
        "path": None,
        "sampling_session_id": f"{session}:sample:7",
        "type": "save_weights_for_sampler",
    }


def test_a_save_sent_again_saves_once(caller: Caller, toy: ToyEngine):
    model = caller.model()
    assert caller.save(model, 1, "a") == caller.save(model, 1, "a")
    assert [call[0] for call in toy.calls].count("save_run") == 1


def test_a_failed_save_leaves_no_folder_and_the_run_goes_on(
    caller: Caller, toy: ToyEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model = caller.model()
    toy.failures["save_run"] = OSError("no space left")
    result = caller.save(model, 1, "a")
    assert result == {"error": "Save failed on the server: OSError: no space left", "category": "server"}
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert caller.save(model, 2, "a")["path"]


@pytest.mark.parametrize(
    ("route", "fields", "message"),
    [
        ("/save_weights", {"path": "a/b"}, "path is 'a/b'"),
        ("/save_weights", {"path": ""}, "path is ''"),
        ("/save_weights", {"path": "a", "ttl_seconds": 5}, "ttl_seconds is 5"),
        ("/save_weights", {"path": "a", "ttl_seconds": -1}, "ttl_seconds is -1"),
        ("/save_weights", {"path": "a", "user_metadata": {"k": 1}}, "user_metadata.k"),
        ("/save_weights_for_sampler", {}, "name either path"),
        ("/save_weights_for_sampler", {"path": "a", "sampling_session_seq_id": 1}, "name either path"),
        ("/save_weights_for_sampler", {"sampling_session_seq_id": -1}, "sampling_session_seq_id"),
        ("/save_weights_for_sampler", {"path": "a", "kind": "soon"}, "kind"),
    ],
)
def test_a_refused_save_says_why_and_uses_up_its_number(
    lasting_caller: Caller, route: str, fields: dict[str, Any], message: str
):
    model = lasting_caller.model()
    assert message in lasting_caller.refused(route, model_id=model, seq_id=1, **fields)
    assert lasting_caller.save(model, 2, "b")["path"]


# ---- what was saved ----


def test_checkpoints_are_listed_newest_first_with_all_that_is_known(caller: Caller):
    model = caller.model()
    caller.save(model, 1, "first", ttl_seconds=7200)
    caller.save(model, 2, "second", user_metadata={"note": "best"})
    second, first = caller.get(f"/training_runs/{model}/checkpoints").json()["checkpoints"]
    assert (second["checkpoint_id"], second["checkpoint_type"]) == ("weights/second", "training")
    assert second["tinker_path"] == f"tinker://{model}/weights/second"
    assert second["user_metadata"] == {"note": "best"}
    assert second["size_bytes"] > 0
    assert second["expires_at"] is None
    remaining = datetime.fromisoformat(first["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=1.9) < remaining < timedelta(hours=2.1)
    page = caller.get("/checkpoints?limit=1&offset=1").json()
    assert [each["checkpoint_id"] for each in page["checkpoints"]] == ["weights/first"]
    assert page["cursor"] == {"offset": 1, "limit": 1, "total_count": 2}


def test_a_deleted_checkpoint_is_gone_and_so_are_its_files(caller: Caller, tmp_path: Path):
    model = caller.model()
    path = caller.save(model, 1, "a")["path"]
    url = f"/training_runs/{model}/checkpoints/weights/a"
    assert caller.request("DELETE", url).status_code == 204
    assert caller.request("DELETE", url).status_code == 404
    caller.refused("/weights_info", status=404, tinker_path=path)
    caller.server.service.sweep()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_deleting_by_a_bare_name_is_refused_since_it_could_mean_several(caller: Caller):
    response = caller.request("DELETE", f"/training_runs/{caller.model()}/checkpoints/a")
    assert response.status_code == 400
    assert "name the kind too" in response.json()["detail"]


def test_an_expiry_can_be_set_and_removed(caller: Caller):
    model = caller.model()
    caller.save(model, 1, "a")
    url = f"/training_runs/{model}/checkpoints/weights/a/ttl"
    assert caller.request("PUT", url, json={"ttl_seconds": 3600}).status_code == 204
    assert caller.get("/checkpoints").json()["checkpoints"][0]["expires_at"] is not None
    assert caller.request("PUT", url, json={"ttl_seconds": None}).status_code == 204
    assert caller.get("/checkpoints").json()["checkpoints"][0]["expires_at"] is None
    for bad in ({"ttl_seconds": 1}, {"ttl_seconds": "soon"}, {}):
        assert caller.request("PUT", url, json=bad).status_code == 400


def test_training_runs_show_their_newest_checkpoints(caller: Caller):
    session = caller.session()
    model, other = caller.model(session), caller.model(session, 1)
    caller.save(model, 1, "a")
    caller.save(model, 2, "b")
    run = caller.get(f"/training_runs/{model}?access_scope=owned").json()
    assert (run["training_run_id"], run["base_model"], run["lora_rank"]) == (model, "toy", 4)
    assert run["last_checkpoint"]["checkpoint_id"] == "weights/b"
    assert run["last_sampler_checkpoint"] is None
    listing = caller.get("/training_runs?limit=10").json()
    assert {each["training_run_id"] for each in listing["training_runs"]} == {model, other}
    assert listing["cursor"]["total_count"] == 2
