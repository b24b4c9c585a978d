"""Downloads: whole or not at all, and never outside their folder."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import tinkerlite
from tests.client.scripted_server import HASTY, Answer, ScriptedServer, scripted_server
from tinkerlite import errors

ADAPTER = "tinker://run/sampler_weights/end"
EXPORT = "tinker://run/external_weights/end"
ARCHIVE_ROUTE = "training_runs/run/checkpoints/sampler_weights/end/archive"
URLS_ROUTE = "training_runs/run/checkpoints/external_weights/end/external_weights_urls"
FILES = {"adapter_config.json": b'{"r": 4}', "adapter_model.safetensors": bytes(range(256)) * 100}


@pytest.fixture
def rest(server: ScriptedServer) -> Iterator[tinkerlite.RestClient]:
    client = tinkerlite.RestClient(base_url=server.url, api_key="tml-secret", config=HASTY)
    yield client
    client.close()


@pytest.fixture
def storage() -> Iterator[ScriptedServer]:
    """Where signed URLs lead: another host, as far as a client can tell."""
    with scripted_server() as running:
        yield running


def tar(entries: dict[str, bytes], mode: str = "w", links: dict[str, str] | None = None) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return packed.getvalue()


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def offer_archive(server: ScriptedServer, storage: ScriptedServer, content: bytes) -> None:
    location = {"Location": f"{storage.url}/api/v1/a.tar?signature=s3cret"}
    server.script(ARCHIVE_ROUTE, Answer(302, {}, location))
    storage.script("a.tar", Answer(body=content))


def offer_files(server: ScriptedServer, storage: ScriptedServer, names: list[str], minutes: int = 60) -> None:
    expires = datetime.now(UTC) + timedelta(minutes=minutes)
    urls = {name: f"{storage.url}/api/v1/{number}" for number, name in enumerate(names)}
    server.script(URLS_ROUTE, Answer(body={"urls": urls, "expires": expires.isoformat()}))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_is_unpacked_into_a_new_folder(
    server: ScriptedServer, storage: ScriptedServer, rest: tinkerlite.RestClient, tmp_path: Path, mode: str
):
    offer_archive(server, storage, tar(FILES, mode))
    folder = rest.download_checkpoint(ADAPTER, tmp_path / "made" / "here").result()
    assert files_in(folder) == FILES
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["here"]


def test_external_weights_come_file_by_file(
    server: ScriptedServer, storage: ScriptedServer, rest: tinkerlite.RestClient, tmp_path: Path
):
    offer_files(server, storage, ["config.json", "shards/1.safetensors"])
    storage.script("0", Answer(body=b"{}"))
    storage.script("1", Answer(body=b"weights"))
    (tmp_path / "empty").mkdir()
    folder = rest.download_checkpoint(EXPORT, tmp_path / "empty").result()
    assert files_in(folder) == {"config.json": b"{}", "shards/1.safetensors": b"weights"}


def test_urls_that_are_about_to_expire_are_asked_for_anew(
    server: ScriptedServer, storage: ScriptedServer, rest: tinkerlite.RestClient, tmp_path: Path
):
    offer_files(server, storage, ["a"], minutes=1)
    offer_files(server, storage, ["a"], minutes=60)
    storage.script("0", Answer(body=b"a"))
    rest.download_checkpoint(EXPORT, tmp_path / "new").result()
    assert len(server.sent(URLS_ROUTE)) == 2


def test_the_api_key_goes_to_its_own_server_alone(
    server: ScriptedServer, storage: ScriptedServer, rest: tinkerlite.RestClient, tmp_path: Path
):
    offer_archive(server, storage, tar(FILES))
    rest.download_checkpoint(ADAPTER, tmp_path / "new").result()
    [fetched] = storage.sent("a.tar")
    assert fetched.query == "signature=s3cret"
    assert "tml-secret" not in str(fetched.headers)
    assert server.sent(ARCHIVE_ROUTE)[0].headers["x-api-key"] == "tml-secret"


def test_a_transfer_that_breaks_off_starts_again(
    server: ScriptedServer, storage: ScriptedServer, rest: tinkerlite.RestClient, tmp_path: Path
):
    storage.script("a.tar", Answer(drop=True), Answer(503, {}))
    offer_archive(server, storage, tar(FILES))
    folder = rest.download_checkpoint(ADAPTER, tmp_path / "new").result()
    assert files_in(folder) == FILES


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "a/../../escape", "..\\escape", "C:\\escape"])
def test_a_path_that_leads_out_of_the_folder_is_refused_and_nothing_stays(
    server: ScriptedServer, storage: ScriptedServer, rest: tinkerlite.RestClient, tmp_path: Path, name: str
):
    offer_archive(server, storage, tar({"fine": b"x", name: b"x"}))
    with pytest.raises(errors.APIResponseValidationError, match="escape"):
        rest.download_checkpoint(ADAPTER, tmp_path / "new").result()
    offer_files(server, storage, [name])
    with pytest.raises(errors.APIResponseValidationError, match="escape"):
        rest.download_checkpoint(EXPORT, tmp_path / "new").result()
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_an_archive_is_refused(
    server: ScriptedServer, storage: ScriptedServer, rest: tinkerlite.RestClient, tmp_path: Path
):
    offer_archive(server, storage, tar(FILES, links={"way-out": "/etc"}))
    with pytest.raises(errors.APIResponseValidationError, match="way-out"):
        rest.download_checkpoint(ADAPTER, tmp_path / "new").result()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"no tar at all", tar(FILES)[:700], tar(FILES, "w:gz")[:-300]])
def test_an_archive_that_cannot_be_read_is_said_to_be_so(
    server: ScriptedServer,
    storage: ScriptedServer,
    rest: tinkerlite.RestClient,
    tmp_path: Path,
    content: bytes,
):
    offer_archive(server, storage, content)
    with pytest.raises(errors.APIResponseValidationError, match="archive"):
        rest.download_checkpoint(ADAPTER, tmp_path / "new").result()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(
    server: ScriptedServer, rest: tinkerlite.RestClient, tmp_path: Path
):
    (tmp_path / "mine").write_text("mine")
    for place in (tmp_path, tmp_path / "mine"):
        with pytest.raises(errors.InvalidRequest, match="not an empty folder"):
            rest.download_checkpoint(ADAPTER, place).result()
    assert (tmp_path / "mine").read_text() == "mine"
    assert server.sent(ARCHIVE_ROUTE) == []


def test_an_expired_signature_is_an_error_that_does_not_show_it(
    server: ScriptedServer, storage: ScriptedServer, rest: tinkerlite.RestClient, tmp_path: Path
):
    storage.script("a.tar", Answer(403, b"<Error>expired</Error>"))
    offer_archive(server, storage, b"")
    with pytest.raises(errors.PermissionDeniedError, match="expired") as caught:
        rest.download_checkpoint(ADAPTER, tmp_path / "new").result()
    assert "s3cret" not in str(caught.value)


def test_what_is_no_url_is_not_fetched(server: ScriptedServer, rest: tinkerlite.RestClient, tmp_path: Path):
    server.script(ARCHIVE_ROUTE, Answer(body={"url": "file:///etc/passwd"}))
    with pytest.raises(errors.APIResponseValidationError, match="no URL"):
        rest.download_checkpoint(ADAPTER, tmp_path / "new").result()


def test_a_server_without_archives_is_said_to_have_none(
    server: ScriptedServer, rest: tinkerlite.RestClient, tmp_path: Path
):
    server.script(ARCHIVE_ROUTE, Answer(404, {"detail": "Not Found"}))
    with pytest.raises(errors.NotFoundError) as caught:
        rest.download_checkpoint(ADAPTER, tmp_path / "new").result()
    assert "save_weights_external" in caught.value.__notes__[-1]
