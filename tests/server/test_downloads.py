"""Weights leave the server by signed links: without a key, for a while, and those files alone."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from tests.server.served import Caller, serving
from tests.server.toy_engine import ToyEngine
from tinkerlite_server.downloads import Links, files_of, tar_size, tar_stream
from tinkerlite_server.errors import ServerError
from tinkerlite_server.settings import Limits


def export(caller: Caller, model: str, seq_id: int = 1, name: str = "final", **options: object) -> dict:
    answer = caller.ok("/save_weights_external", model_id=model, seq_id=seq_id, path=name, **options)
    return caller.result(answer["request_id"])


def links(caller: Caller, model: str, name: str = "final") -> dict:
    response = caller.get(f"/training_runs/{model}/checkpoints/external_weights/{name}/external_weights_urls")
    assert response.status_code == 200, response.text
    return response.json()


def fetch(caller: Caller, url: str, **headers: str) -> httpx.Response:
    """As a program without a key would."""
    return caller.server.call(caller.server.http.get(url, headers=headers))


def archive(caller: Caller, model: str, checkpoint: str) -> httpx.Response:
    return caller.get(f"/training_runs/{model}/checkpoints/{checkpoint}/archive")


# ---- external weights ----


def test_external_weights_are_saved_in_order_and_listed_as_external(caller: Caller):
    model = caller.model()
    saved = export(caller, model, ttl_seconds=3600)
    assert saved["path"] == f"tinker://{model}/external_weights/final"
    assert saved["type"] == "save_weights_external"
    [entry] = caller.get(f"/training_runs/{model}/checkpoints").json()["checkpoints"]
    assert (entry["checkpoint_id"], entry["checkpoint_type"]) == ("external_weights/final", "external")
    assert entry["size_bytes"] == saved["size_bytes"] > 0
    assert entry["expires_at"]


def test_each_file_of_external_weights_is_fetched_without_a_key(
    caller: Caller, toy: ToyEngine, tmp_path: Path
):
    model = caller.model()
    size = export(caller, model)["size_bytes"]
    signed = links(caller, model)
    assert set(signed["urls"]) == {"README.md", "adapter.npy", "state.json"}
    fetched = {name: fetch(caller, url) for name, url in signed["urls"].items()}
    assert all(response.status_code == 200 for response in fetched.values())
    [folder] = (tmp_path / "checkpoints").iterdir()
    for name, response in fetched.items():
        assert response.content == (folder / name).read_bytes()
    assert sum(int(response.headers["content-length"]) for response in fetched.values()) == size
    remaining = datetime.fromisoformat(signed["expires"]) - datetime.now(UTC)
    assert timedelta(minutes=59) < remaining <= timedelta(hours=1)


def test_the_readme_says_what_the_weights_are(caller: Caller):
    model = caller.model()
    export(caller, model)
    card = fetch(caller, links(caller, model)["urls"]["README.md"]).text
    assert f"# tinker://{model}/external_weights/final" in card
    assert "rank 4, alpha 32" in card


@pytest.mark.parametrize(
    ("fields", "message"),
    [({}, "path is missing"), ({"path": "../x"}, "path is '../x'"), ({"path": "a", "ttl_seconds": 1}, "ttl")],
)
def test_a_refused_export_says_why_and_uses_up_its_number(caller: Caller, fields: dict, message: str):
    model = caller.model()
    assert message in caller.refused("/save_weights_external", model_id=model, seq_id=1, **fields)
    assert export(caller, model, 2)["path"]


def test_links_are_made_for_external_weights_alone(caller: Caller):
    model = caller.model()
    caller.save(model, 1, "a")
    response = caller.get(f"/training_runs/{model}/checkpoints/weights/a/external_weights_urls")
    assert response.status_code == 400
    assert "save_weights_external()" in response.json()["detail"]


def test_part_of_a_file_can_be_fetched_to_go_on_after_a_lost_connection(caller: Caller):
    model = caller.model()
    export(caller, model)
    url = links(caller, model)["urls"]["adapter.npy"]
    whole = fetch(caller, url).content
    rest = fetch(caller, url, Range="bytes=10-")
    assert rest.status_code == 206
    assert rest.content == whole[10:]


def test_what_was_collected_between_look_up_and_open_is_not_found(caller: Caller, tmp_path: Path):
    """As when a checkpoint is deleted just then: its row was still there, its files are not."""
    model = caller.model()
    export(caller, model)
    signed = links(caller, model)["urls"]["adapter.npy"]
    whole = archive(caller, model, "external_weights/final").headers["location"]
    shutil.rmtree(*(tmp_path / "checkpoints").iterdir())
    for response in (
        fetch(caller, signed),
        fetch(caller, whole),
        caller.get(f"/training_runs/{model}/checkpoints/external_weights/final/external_weights_urls"),
    ):
        assert response.status_code == 404
        assert "was deleted, replaced, or has expired" in response.json()["detail"]


# ---- archives ----


@pytest.mark.parametrize("kind", ["weights", "sampler_weights", "external_weights"])
def test_an_archive_of_any_kind_holds_every_file(caller: Caller, tmp_path: Path, kind: str):
    model = caller.model()
    route = {"weights": "save_weights", "sampler_weights": "save_weights_for_sampler"}.get(kind)
    answer = caller.ok(f"/{route or 'save_weights_external'}", model_id=model, seq_id=1, path="a")
    caller.result(answer["request_id"])
    redirect = archive(caller, model, f"{kind}/a")
    assert redirect.status_code == 302
    assert parsedate_to_datetime(redirect.headers["expires"]) > datetime.now(UTC)
    assert redirect.json()["url"] == redirect.headers["location"]
    response = fetch(caller, redirect.headers["location"])
    assert response.headers["content-type"] == "application/x-tar"
    assert int(response.headers["content-length"]) == len(response.content)
    [folder] = (tmp_path / "checkpoints").iterdir()
    with tarfile.open(fileobj=io.BytesIO(response.content)) as tar:
        contents = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert contents == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_tar_stream_is_what_tar_would_write_and_as_long_as_was_said(tmp_path: Path):
    """Names and sizes around every edge: empty, a whole block, several records, long and foreign names."""
    (tmp_path / "deep").mkdir()
    sizes = {"empty": 0, "block": 512, "large": 30_001, "deep/x": 1, "n" * 150: 5, "é": 7}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(os.urandom(size))
    files = files_of(tmp_path)
    stream = b"".join(tar_stream(files))
    assert len(stream) == tar_size(files)
    assert len(stream) % tarfile.RECORDSIZE == 0
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        for member in tar:
            assert (member.uid, member.uname, member.isfile()) == (0, "", True)
            assert tar.extractfile(member).read() == (tmp_path / member.name).read_bytes()  # type: ignore[union-attr]
        assert {member.name for member in tar.getmembers()} == set(sizes)


def test_an_archive_is_made_while_it_is_sent_and_not_before(tmp_path: Path):
    with (tmp_path / "large").open("wb") as sparse:
        sparse.truncate(2**36)  # 64 GiB that take no room
    stream = tar_stream(files_of(tmp_path))
    next(stream)
    assert len(next(stream)) == 2**20


# ---- what a link opens, and what it does not ----


@pytest.fixture
def link(caller: Caller) -> str:
    model = caller.model()
    export(caller, model)
    return links(caller, model)["urls"]["adapter.npy"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("adapter.npy", "state.json"),
        ("adapter.npy", "..%2f..%2fdownload_secret"),
        ("expires=", "expires=9"),
        ("signature=", "signature=0"),
        ("signature=", "signature=%C3%A9"),
        ("/files/adapter.npy", "/archive.tar"),
    ],
)
def test_a_link_that_was_changed_opens_nothing(caller: Caller, link: str, old: str, new: str):
    assert fetch(caller, link).status_code == 200
    response = fetch(caller, link.replace(old, new))
    assert response.status_code == 403
    assert "signature" in response.json()["detail"]


@pytest.mark.parametrize("drop", ["expires", "signature"])
def test_a_link_without_its_signature_or_end_is_refused(caller: Caller, link: str, drop: str):
    parts = urlsplit(link)
    query = "&".join(f"{key}={value}" for key, value in parse_qsl(parts.query) if key != drop)
    response = fetch(caller, parts._replace(query=query).geturl())
    assert response.status_code == 400
    assert drop in response.json()["detail"]


def test_a_genuine_link_to_what_is_not_in_the_folder_opens_nothing(caller: Caller, link: str):
    """Even the server's own signature does not lead out of a checkpoint."""
    checkpoint = link.partition("/downloads/")[2].partition("/")[0]
    outside = "../../download_secret"
    expires, signature = caller.server.service.links.sign(f"download_file/{checkpoint}/{outside}")
    response = fetch(
        caller,
        f"/downloads/{checkpoint}/files/..%2f..%2fdownload_secret?expires={expires}&signature={signature}",
    )
    assert response.status_code == 404
    assert "has no file" in response.json()["detail"]


def test_a_link_ends(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, limits=Limits(download_seconds=0.0)) as served:
        caller = served.caller()
        model = caller.model()
        export(caller, model)
        response = fetch(caller, links(caller, model)["urls"]["adapter.npy"])
        assert response.status_code == 403
        assert "has expired" in response.json()["detail"]


def test_a_link_ends_with_its_checkpoint(caller: Caller):
    model = caller.model()
    export(caller, model)
    url = links(caller, model)["urls"]["adapter.npy"]
    caller.request("DELETE", f"/training_runs/{model}/checkpoints/external_weights/final")
    assert fetch(caller, url).status_code == 404


def test_links_go_to_whoever_may_read_the_checkpoint(toy: ToyEngine, tmp_path: Path):
    with serving(toy, tmp_path, api_keys=["tml-mine", "tml-yours"]) as served:
        mine, yours = served.caller("tml-mine"), served.caller("tml-yours")
        model = mine.model()
        export(mine, model)
        base = f"/training_runs/{model}/checkpoints/external_weights/final"
        for suffix in ("/external_weights_urls", "/archive"):
            assert yours.get(base + suffix).status_code == 404
        mine.request("POST", base + "/publish")
        assert fetch(yours, links(yours, model)["urls"]["adapter.npy"]).status_code == 200
        assert archive(yours, model, "external_weights/final").status_code == 302


@pytest.fixture
def signer(tmp_path: Path) -> Links:
    return Links(tmp_path, 60)


def test_links_hold_after_a_restart_and_on_no_other_server(signer: Links, tmp_path: Path):
    expires, signature = signer.sign("x")
    assert Links(tmp_path, 60).is_genuine("x", expires, signature)
    (tmp_path / "other").mkdir()
    assert not Links(tmp_path / "other", 60).is_genuine("x", expires, signature)


def test_the_secret_is_for_the_servers_user_alone(signer: Links, tmp_path: Path):
    assert stat.S_IMODE((tmp_path / "download_secret").stat().st_mode) == 0o600
    assert len((tmp_path / "download_secret").read_bytes()) == 32


def test_a_secret_that_a_crash_left_empty_signs_nothing(tmp_path: Path):
    (tmp_path / "download_secret").write_bytes(b"")
    with pytest.raises(ServerError, match="is damaged: it has 0 bytes, not 32; delete it"):
        Links(tmp_path, 60)


def test_external_weights_which_may_be_encrypted_are_not_sampled_from(caller: Caller):
    session = caller.session()
    path = export(caller, caller.model(session))["path"]
    body = {"session_id": session, "sampling_session_seq_id": 0, "model_path": path}
    assert "saved for use elsewhere" in caller.refused("/create_sampling_session", **body)
