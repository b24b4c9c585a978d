"""A checkpoint's files, from the server into a folder that is there whole or not at all.

Reads the two forms in which servers hand checkpoints out: one URL a file, and one tar of all.
Trusts no path in either.
"""

from __future__ import annotations

import asyncio
import email.utils
import shutil
import tarfile
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from tinkerlite.answers import read_model
from tinkerlite.connection import Connection
from tinkerlite.errors import APIResponseValidationError, CapabilityError, InvalidRequest, NotFoundError
from tinkerlite.types import (
    CheckpointArchiveUrlResponse,
    ExternalWeightsUrlsResponse,
    ParsedCheckpointTinkerPath,
)

if TYPE_CHECKING:
    import httpx

URL_MARGIN = timedelta(minutes=5)
"""URLs that end within this are asked for anew before the next file."""


async def external_weights_urls(
    connection: Connection, checkpoint: ParsedCheckpointTinkerPath
) -> ExternalWeightsUrlsResponse:
    """One URL for each file."""
    return await connection.ask(
        ExternalWeightsUrlsResponse, "GET", f"{_path(checkpoint)}/external_weights_urls"
    )


async def archive_url(
    connection: Connection, checkpoint: ParsedCheckpointTinkerPath
) -> CheckpointArchiveUrlResponse:
    """The URL of a tar. Servers answer with it or redirect to it; while they still pack, with 503."""
    response = await connection.send("GET", f"{_path(checkpoint)}/archive", may_redirect=True)
    if not response.is_redirect:
        answer = read_model(response, CheckpointArchiveUrlResponse)
        return answer.model_copy(update={"url": str(response.request.url.join(answer.url))})
    location = response.headers.get("location")
    if not location:
        raise APIResponseValidationError(message=f"{response.request.url}: a redirect that leads nowhere")
    return CheckpointArchiveUrlResponse(
        url=str(response.request.url.join(location)), expires=_expires(response.headers)
    )


async def download(connection: Connection, checkpoint: ParsedCheckpointTinkerPath, folder: Path) -> Path:
    """Fetch a checkpoint into a folder that does not exist yet, or is empty.

    Raises:
        InvalidRequest: there is something in the folder.
        CapabilityError: the server does not hand out this kind of checkpoint.
        APIResponseValidationError: a file's path leads out of the folder; nothing was kept.
    """
    folder = folder.expanduser().absolute()
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise InvalidRequest(f"{folder} is not an empty folder; name one that does not exist yet")
    with _draft(folder) as draft:
        if checkpoint.checkpoint_type == "external":
            await _fetch_files(connection, checkpoint, draft)
        else:
            await _fetch_archive(connection, checkpoint, draft)
    return folder


async def _fetch_files(connection: Connection, checkpoint: ParsedCheckpointTinkerPath, draft: Path) -> None:
    signed = await external_weights_urls(connection, checkpoint)
    for name in sorted(signed.urls):
        if _aware(signed.expires) - datetime.now(UTC) < URL_MARGIN:
            signed = await external_weights_urls(connection, checkpoint)
        target = draft / _inside(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        await connection.fetch(signed.urls[name], target)


async def _fetch_archive(connection: Connection, checkpoint: ParsedCheckpointTinkerPath, draft: Path) -> None:
    try:
        archive = await archive_url(connection, checkpoint)
    except NotFoundError as error:
        error.add_note(
            "Where the checkpoint does exist, the server has no archives: load it into a run, "
            "save_weights_external(), and download that."
        )
        raise
    packed = draft.parent / "archive.tar"
    await connection.fetch(archive.url, packed)
    await asyncio.to_thread(unpack, packed, draft)


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of a tar into a folder, compressed or not.

    Raises:
        APIResponseValidationError: it is no tar, or has an entry that is neither a file nor a
            folder (a link could lead anywhere), or one whose path leads out of the folder.
    """
    try:
        with tarfile.open(archive) as tar:
            for entry in tar:
                target = folder / _inside(entry.name)
                if entry.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                content = tar.extractfile(entry) if entry.isreg() else None
                if content is None:
                    raise APIResponseValidationError(
                        message=f"the checkpoint's archive has {entry.name!r}, which is no file"
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                with content, target.open("wb") as file:
                    shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError) as error:
        raise APIResponseValidationError(
            message=f"the checkpoint's archive cannot be read: {error}"
        ) from error


def _inside(name: str) -> Path:
    """A path from the server, relative and without a way up, on any system."""
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    unsafe = path.is_absolute() or windows.drive or windows.root or "\0" in name
    if unsafe or ".." in {*path.parts, *windows.parts}:
        raise APIResponseValidationError(
            message=f"a file of the checkpoint is called {name!r}; nothing was written"
        )
    return Path(path)


@contextmanager
def _draft(folder: Path) -> Generator[Path]:
    """A folder beside the one to fill, which becomes it when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        draft = Path(scratch) / "draft"
        draft.mkdir()
        yield draft
        if not any(draft.iterdir()):
            raise CapabilityError("the server says that this checkpoint has no files")
        draft.replace(folder)


def _path(checkpoint: ParsedCheckpointTinkerPath) -> str:
    return f"training_runs/{checkpoint.training_run_id}/checkpoints/{checkpoint.checkpoint_id}"


def _expires(headers: httpx.Headers) -> datetime | None:
    try:
        return email.utils.parsedate_to_datetime(headers["expires"])
    except (KeyError, ValueError):
        return None


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
