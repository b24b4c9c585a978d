"""`tinkerlite run` and `tinkerlite checkpoint`, on the real server in this process."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

import tinkerlite
from tests.client.command import Command, command
from tests.client.scripted_server import Answer, ScriptedServer
from tests.client.test_download import ADAPTER, FILES, offer_archive, tar


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str],
    local_service: tinkerlite.ServiceClient,
    student_folder: Path,
    teacher_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """Commands that find the server which `local_service` keeps alive."""
    monkeypatch.setenv("TINKERLITE_BASE_URL", f"local://{student_folder},{teacher_folder}")
    return command(capsys)


@pytest.fixture
def training(local_service: tinkerlite.ServiceClient, student_folder: Path) -> tinkerlite.TrainingClient:
    return local_service.create_lora_training_client(
        str(student_folder), rank=4, user_metadata={"task": "sums"}
    )


@pytest.fixture
def path(training: tinkerlite.TrainingClient) -> str:
    return training.save_state("held").result().path


# ---- runs ----


def test_runs_are_listed_the_latest_first(
    run: Command, training: tinkerlite.TrainingClient, path: str, student_folder: Path
):
    rows = run("run", "list").out.splitlines()
    assert rows[0].split()[:3] == ["run", "base", "model"]
    assert rows[2].startswith(training.model_id)
    assert rows[2].split()[-1] == "weights/held"
    [newest] = run("run", "list", "--limit", "1", "--json").json["training_runs"]
    assert newest["training_run_id"] == training.model_id
    assert newest["base_model"] == str(student_folder)
    assert newest["lora_rank"] == 4


def test_a_page_says_what_it_leaves_out(run: Command, training: tinkerlite.TrainingClient, path: str):
    said = run("run", "list", "--limit", "1")
    total = run("run", "list", "--limit", "1", "--json").json["cursor"]["total_count"]
    if total > 1:
        assert said.err == f"1 of {total}; the rest: --offset 1\n"
    assert (
        f"there are {total}, and none after --offset {total}"
        in run("run", "list", "--offset", str(total)).err
    )


def test_a_run_shows_what_it_is_and_what_it_saved(
    run: Command, training: tinkerlite.TrainingClient, path: str
):
    said = run("run", "show", training.model_id)
    assert "LoRA, rank 4" in said.words
    assert "task sums" in said.words
    assert path in said.out
    by_path = run("run", "show", path, "--json").json
    assert by_path["training_run"]["training_run_id"] == training.model_id
    assert [each["tinker_path"] for each in by_path["checkpoints"]] == [path]


def test_a_run_that_is_not_there_is_a_line(run: Command):
    said = run("run", "show", "sess-none:train:0", "--json")
    assert (said.status, said.out) == (1, "")
    assert "sess-none:train:0" in said.err


@pytest.mark.parametrize("name", ["run", "checkpoint"])
def test_without_an_action_it_is_a_usage_error(run: Command, name: str):
    said = run(name)
    assert (said.status, said.out) == (2, "")
    assert "ACTION" in said.err


# ---- checkpoints ----


def test_checkpoints_are_listed_one_a_line_with_their_paths_in_full(
    run: Command, training: tinkerlite.TrainingClient, path: str
):
    table = run("checkpoint", "list", "--run", training.model_id).out.splitlines()
    assert table[2].split()[:2] == [path, "training"]
    assert "never" in table[2]
    [listed] = run("checkpoint", "list", "--run", training.model_id, "--json").json["checkpoints"]
    assert listed["tinker_path"] == path
    assert listed["size_bytes"] > 0
    everywhere = run("checkpoint", "list", "--json").json
    assert path in [each["tinker_path"] for each in everywhere["checkpoints"]]


@pytest.mark.parametrize("option", ["--limit", "--offset"])
def test_a_run_is_listed_whole_and_asking_for_a_page_of_it_is_a_usage_error(run: Command, option: str):
    said = run("checkpoint", "list", "--run", "sess-1:train:0", option, "1")
    assert (said.status, said.out) == (2, "")
    assert option in said.err


def test_a_checkpoint_is_given_a_time_to_live_and_freed_of_it(
    run: Command, training: tinkerlite.TrainingClient, path: str
):
    def days_left() -> float | None:
        [listed] = run("checkpoint", "list", "--run", training.model_id, "--json").json["checkpoints"]
        if "expires_at" not in listed:
            return None
        return (datetime.fromisoformat(listed["expires_at"]) - datetime.now(UTC)).total_seconds() / 86_400

    assert run("checkpoint", "ttl", path, "7d").out == f"{path} may be deleted in 604800 s\n"
    assert days_left() == pytest.approx(7, abs=0.01)
    assert run("checkpoint", "ttl", path, "12h", "--json").json == {"path": path, "ttl_seconds": 43_200}
    assert days_left() == pytest.approx(0.5, abs=0.01)
    assert run("checkpoint", "ttl", path, "none").out == f"{path} is kept\n"
    assert days_left() is None


@pytest.mark.parametrize("ttl", ["soon", "7y", "-1", "1.5h", ""])
def test_what_is_no_time_is_a_usage_error(run: Command, path: str, ttl: str):
    said = run("checkpoint", "ttl", path, ttl)
    assert (said.status, said.out) == (2, "")


def test_a_time_that_the_server_refuses_is_a_line(run: Command, path: str):
    said = run("checkpoint", "ttl", path, "60")
    assert (said.status, said.out) == (1, "")
    assert "3600" in said.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_deleting_asks_first_and_takes_silence_for_no(
    run: Command, path: str, monkeypatch: pytest.MonkeyPatch
):
    for answer in ("\n", "n\n", ""):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        said = run("checkpoint", "delete", path)
        assert (said.status, said.out) == (1, "")
        assert f"Delete {path} for good? [y/N]" in said.err
        assert "nothing was deleted" in said.err
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert run("checkpoint", "delete", path).out == f"deleted {path}\n"
    assert run("checkpoint", "delete", path, "--yes").status == 1, "it is gone"


def test_deleting_needs_a_terminal_or_yes(
    run: Command, training: tinkerlite.TrainingClient, path: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    said = run("checkpoint", "delete", path)
    assert (said.status, said.out) == (2, "")
    assert "--yes" in said.err
    assert run("checkpoint", "delete", path, "--yes", "--json").json == {"deleted": path}
    assert run("checkpoint", "list", "--run", training.model_id, "--json").json["checkpoints"] == []
    assert run("checkpoint", "list", "--run", training.model_id).err == "there are none\n"


def test_a_path_that_is_none_is_a_line(run: Command):
    for action in (["delete", "weights/x", "--yes"], ["ttl", "weights/x", "7d"], ["download", "weights/x"]):
        said = run("checkpoint", *action)
        assert (said.status, said.out) == (1, "")
        assert "'weights/x'" in said.err


# ---- sharing and fetching ----


def test_a_checkpoint_is_published_and_taken_back(
    run: Command, training: tinkerlite.TrainingClient, path: str
):
    def is_public() -> bool:
        [listed] = run("checkpoint", "list", "--run", training.model_id, "--json").json["checkpoints"]
        return listed["public"]

    assert not is_public()
    assert run("checkpoint", "publish", path).out == f"{path} is public\n"
    assert is_public()
    assert run("checkpoint", "unpublish", path, "--json").json == {"unpublished": path}
    assert not is_public()


def test_an_adapter_is_downloaded_whole(run: Command, training: tinkerlite.TrainingClient, tmp_path: Path):
    saved = training.save_weights_for_sampler("fetched").result().path
    out = tmp_path / "adapter"
    told = run("checkpoint", "download", saved or "", "--out", str(out), "--json").json
    assert told["folder"] == str(out)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(told["files"])
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 4
    assert (out / "adapter_model.safetensors").stat().st_size > 1000


def test_a_download_says_where_the_files_are(
    capsys: pytest.CaptureFixture[str],
    server: ScriptedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    run = command(capsys)
    for _ in range(2):
        offer_archive(server, server, tar(FILES))
    out = tmp_path / "fetched"
    told = run("checkpoint", "download", ADAPTER, "--out", str(out), "--base-url", server.url, "--json").json
    assert told == {"path": ADAPTER, "folder": str(out), "files": sorted(FILES)}
    assert (out / "adapter_config.json").read_bytes() == FILES["adapter_config.json"]
    monkeypatch.chdir(tmp_path)
    said = run("checkpoint", "download", ADAPTER, "--base-url", server.url)
    assert said.out.startswith(f"{ADAPTER} is in {tmp_path / 'end'}\n  adapter_config.json\n")
    again = run("checkpoint", "download", ADAPTER, "--base-url", server.url)
    assert (again.status, again.out) == (1, "")
    assert "is not an empty folder" in again.err


def test_a_server_without_archives_is_a_line(
    capsys: pytest.CaptureFixture[str], server: ScriptedServer, tmp_path: Path
):
    route = "training_runs/run/checkpoints/sampler_weights/end/archive"
    server.script(route, Answer(404, {"detail": "Not Found"}))
    said = command(capsys)(
        "checkpoint", "download", ADAPTER, "--out", str(tmp_path / "x"), "--base-url", server.url
    )
    assert (said.status, said.out) == (1, "")
    assert "the server has no archives" in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
