"""Routes by which saved weights leave the server: signed links, and what they open."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from email.utils import format_datetime

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from tinkerlite import types
from tinkerlite_server.downloads import files_of, tar_size, tar_stream
from tinkerlite_server.errors import BadRequest, UnknownName
from tinkerlite_server.routes.exchange import Owner, Served, reply
from tinkerlite_server.service import Service
from tinkerlite_server.tables import CheckpointRow

router = APIRouter()

# ---- links ----


@router.get("/training_runs/{run_id}/checkpoints/{kind}/{name}/external_weights_urls")
async def external_weights_urls(
    run_id: str, kind: str, name: str, request: Request, service: Served, owner: Owner
) -> Response:
    """A link for each file of external weights."""
    row = service.store.checkpoint(f"tinker://{run_id}/{kind}/{name}", owner)
    if kind != "external_weights":
        raise BadRequest(
            f"{row.path} is of kind {kind}; there are links to external_weights, which "
            "save_weights_external() writes. Any kind can be had as .../archive"
        )
    expires, urls = datetime.now(UTC), dict[str, str]()
    with service.reading(row) as folder:
        files = list(files_of(folder))
    for file in files:
        expires, urls[file] = _link(request, service, "download_file", checkpoint_id=row.id, file=file)
    return reply(types.ExternalWeightsUrlsResponse(urls=urls, expires=expires))


@router.get("/training_runs/{run_id}/checkpoints/{kind}/{name}/archive")
async def archive(
    run_id: str, kind: str, name: str, request: Request, service: Served, owner: Owner
) -> Response:
    """A link to all files of a checkpoint in one, as older clients ask for it."""
    row = service.store.checkpoint(f"tinker://{run_id}/{kind}/{name}", owner)
    expires, url = _link(request, service, "download_archive", checkpoint_id=row.id)
    answer = types.CheckpointArchiveUrlResponse(url=url, expires=expires)
    return reply(answer, 302, Location=url, Expires=format_datetime(expires, usegmt=True))


def _link(request: Request, service: Service, route: str, **of: str) -> tuple[datetime, str]:
    expires, signature = service.links.sign(_resource(route, **of))
    url = request.url_for(route, **of).include_query_params(expires=expires, signature=signature)
    return datetime.fromtimestamp(expires, UTC), str(url)


def _resource(route: str, **of: str) -> str:
    return "/".join([route, *of.values()])


# ---- what they open ----


@router.get("/downloads/{checkpoint_id}/archive.tar")
async def download_archive(
    checkpoint_id: str, service: Served, expires: int = Query(), signature: str = Query()
) -> Response:
    """The files of a checkpoint as one tar stream, for whoever has a link to it."""
    row = _checkpoint(service, expires, signature, "download_archive", checkpoint_id=checkpoint_id)
    name = f"{row.run_id}.{row.kind}.{row.name}.tar".replace(":", ".")
    with ExitStack() as reading:
        files = files_of(reading.enter_context(service.reading(row)))
        headers = {
            "Content-Length": str(tar_size(files)),
            "Content-Disposition": f'attachment; filename="{name}"',
        }
        archive = StreamingResponse(tar_stream(files), headers=headers, media_type="application/x-tar")
        return Download(archive, reading.pop_all())


@router.get("/downloads/{checkpoint_id}/files/{file:path}")
async def download_file(
    checkpoint_id: str, file: str, service: Served, expires: int = Query(), signature: str = Query()
) -> Response:
    """A file of a checkpoint, or a range of it, for whoever has a link to it."""
    row = _checkpoint(service, expires, signature, "download_file", checkpoint_id=checkpoint_id, file=file)
    with ExitStack() as reading:
        # Looked up among what is there, so that no name can lead out of the folder.
        found = files_of(reading.enter_context(service.reading(row))).get(file)
        if found is None:
            raise UnknownName(f"{row.path} has no file {file!r}")
        return Download(FileResponse(found, media_type="application/octet-stream"), reading.pop_all())


class Download(Response):
    """An answer that is read from a checkpoint's files, which stay until it is sent, or cannot be."""

    def __init__(self, files: Response, reading: ExitStack) -> None:
        super().__init__(status_code=files.status_code)
        self._files = files
        self._reading = reading

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._reading:
            await self._files(scope, receive, send)


def _checkpoint(service: Service, expires: int, signature: str, route: str, **of: str) -> CheckpointRow:
    if not service.links.is_genuine(_resource(route, **of), expires, signature):
        raise HTTPException(403, "the signature of this link does not fit; ask for a new link")
    if service.links.has_expired(expires):
        raise HTTPException(403, "this link has expired; ask for a new one")
    row = service.store.checkpoint_by_id(of["checkpoint_id"])
    if row is None:
        raise UnknownName("the checkpoint behind this link was deleted, replaced, or has expired")
    return row
