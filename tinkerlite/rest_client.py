"""RestClient: what the server keeps (runs, checkpoints, sessions), to list, to fetch and to tidy up.

Each method is one question, answered at once; all return an APIFuture like the other clients'.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel

from tinkerlite import download
from tinkerlite.answers import read_model
from tinkerlite.compat import resolved
from tinkerlite.config import ClientConfig, environment
from tinkerlite.connection import Connection
from tinkerlite.errors import CapabilityError, InvalidRequest
from tinkerlite.future import APIFuture
from tinkerlite.types import (
    CheckpointArchiveUrlResponse,
    CheckpointsListResponse,
    CopyWeightsResponse,
    ExternalWeightsUrlsResponse,
    GetSamplerResponse,
    GetServerCapabilitiesResponse,
    GetSessionResponse,
    ListSessionsResponse,
    ParsedCheckpointTinkerPath,
    SessionSearchRequest,
    SessionSearchResponse,
    TrainingRun,
    TrainingRunsResponse,
    WeightsInfoResponse,
    WhoamiResponse,
)

ModelT = TypeVar("ModelT", bound=BaseModel)
AccessScope = Literal["owned", "accessible"]


class RestClient:
    """Questions about the server's holdings. Needs no session, so it leaves none behind.

    Lists come in pages: `limit` entries from `offset` on, of as many as the cursor says.
    """

    def __init__(
        self,
        connection: Connection | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        config: ClientConfig | None = None,
    ) -> None:
        if connection is not None and (base_url, api_key, config) != (None, None, None):
            raise InvalidRequest("a connection has its base_url, api_key and config already")
        self._is_owner = connection is None
        self._connection = connection or Connection(base_url, api_key, config)

    # ---- training runs ----

    def list_training_runs(
        self,
        limit: int = 20,
        offset: int = 0,
        access_scope: AccessScope = "owned",
        project_id: str | None = None,
    ) -> APIFuture[TrainingRunsResponse]:
        """A page of training runs: one's own or all that one may see, of one project or of all."""
        params: dict[str, str | int] = {"limit": limit, "offset": offset, "access_scope": access_scope}
        if project_id is not None:
            params["project_id"] = project_id
        return self._get(TrainingRunsResponse, "training_runs", params)

    def get_training_run(
        self, training_run_id: str, access_scope: AccessScope = "owned"
    ) -> APIFuture[TrainingRun]:
        """One training run; its id is the training client's `model_id`."""
        return self._get(TrainingRun, f"training_runs/{training_run_id}", {"access_scope": access_scope})

    def get_training_run_by_tinker_path(
        self, tinker_path: str, access_scope: AccessScope = "owned"
    ) -> APIFuture[TrainingRun]:
        """The training run that saved a checkpoint."""
        return self.get_training_run(_parse(tinker_path).training_run_id, access_scope)

    # ---- checkpoints ----

    def list_checkpoints(self, training_run_id: str) -> APIFuture[CheckpointsListResponse]:
        """All checkpoints of one training run."""
        return self._get(CheckpointsListResponse, f"training_runs/{training_run_id}/checkpoints")

    def list_user_checkpoints(self, limit: int = 100, offset: int = 0) -> APIFuture[CheckpointsListResponse]:
        """A page of the caller's checkpoints, of all runs."""
        return self._get(CheckpointsListResponse, "checkpoints", {"limit": limit, "offset": offset})

    def get_weights_info_by_tinker_path(self, tinker_path: str) -> APIFuture[WeightsInfoResponse]:
        """Base model and LoRA rank of a checkpoint."""
        ask = self._connection.ask(
            WeightsInfoResponse, "POST", "weights_info", json={"tinker_path": tinker_path}
        )
        return self._connection.start(ask, "weights_info")

    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> APIFuture[None]:
        """Delete a checkpoint for good; `checkpoint_id` is KIND/NAME, as listed."""
        return self._delete(f"training_runs/{training_run_id}/checkpoints/{checkpoint_id}")

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        """The same, by path."""
        return self._delete(_checkpoint_url(tinker_path))

    def set_checkpoint_ttl_from_tinker_path(
        self, tinker_path: str, ttl_seconds: int | None
    ) -> APIFuture[None]:
        """Let a checkpoint expire after this long from now; None keeps it."""
        return self._do("PUT", f"{_checkpoint_url(tinker_path)}/ttl", {"ttl_seconds": ttl_seconds})

    def publish_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        """Let everyone on the server load a checkpoint, sample from it and download it."""
        return self._do("POST", f"{_checkpoint_url(tinker_path)}/publish")

    def unpublish_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        """Keep a published checkpoint to oneself again."""
        return self._delete(f"{_checkpoint_url(tinker_path)}/publish")

    def copy_weights(
        self,
        path: str,
        destination_project_id: str | None = None,
        *,
        ttl_seconds: int | None = None,
        weights_access_token: str | None = None,
    ) -> APIFuture[str]:
        """Make a checkpoint one's own, in a run that cannot be trained on; the copy's path.

        Args:
            path: of one's own checkpoint, of a published one, or of one that the token lets read.
            destination_project_id: where the copy is filed; also read from TINKERLITE_PROJECT_ID.
            ttl_seconds: when the copy may be deleted; absent, never, whatever holds for the original.
            weights_access_token: for weights of another account, what its owner made for them.

        Raises:
            InvalidRequest: no project is named.
        """
        project_id = destination_project_id or environment("PROJECT_ID")
        if project_id is None:
            raise InvalidRequest(
                "a copy is filed under a project; name destination_project_id or set TINKERLITE_PROJECT_ID"
            )
        body = {"source_path": path, "destination_project_id": project_id}
        given = {"ttl_seconds": ttl_seconds, "weights_access_token": weights_access_token}
        body |= {name: value for name, value in given.items() if value is not None}
        # A repetition after a lost answer says that it is one, or there would be two copies.
        headers = {"X-Idempotency-Key": uuid.uuid4().hex}

        async def work() -> str:
            response = await self._connection.send("POST", "copy_weights", json=body, headers=headers)
            return read_model(response, CopyWeightsResponse).tinker_path

        return self._connection.start(work(), f"copy of {path}")

    # ---- a checkpoint's files ----

    def get_external_weights_urls(self, tinker_path: str) -> APIFuture[ExternalWeightsUrlsResponse]:
        """Where to fetch each file of weights that `save_weights_external` saved."""
        ask = download.external_weights_urls(self._connection, _parse(tinker_path))
        return self._connection.start(ask, "external_weights_urls")

    def get_checkpoint_archive_url(
        self, training_run_id: str, checkpoint_id: str
    ) -> APIFuture[CheckpointArchiveUrlResponse]:
        """Where to fetch a tar of a checkpoint; `checkpoint_id` is KIND/NAME, as listed.

        Servers of an older protocol offer that, and ours; others may know only external weights.
        """
        return self.get_checkpoint_archive_url_from_tinker_path(f"tinker://{training_run_id}/{checkpoint_id}")

    def get_checkpoint_archive_url_from_tinker_path(
        self, tinker_path: str
    ) -> APIFuture[CheckpointArchiveUrlResponse]:
        """The same, by path."""
        return self._connection.start(download.archive_url(self._connection, _parse(tinker_path)), "archive")

    def download_checkpoint(self, tinker_path: str, folder: str | Path) -> APIFuture[Path]:
        """Fetch a checkpoint into a folder that does not exist yet or is empty; its absolute path.

        The folder is filled whole or not at all, and nothing is written beside it.
        """
        work = download.download(self._connection, _parse(tinker_path), Path(folder))
        return self._connection.start(work, f"download of {tinker_path}")

    # ---- sessions and samplers ----

    def list_sessions(
        self, limit: int = 20, offset: int = 0, access_scope: AccessScope = "owned"
    ) -> APIFuture[ListSessionsResponse]:
        """A page of session ids."""
        params = {"limit": limit, "offset": offset, "access_scope": access_scope}
        return self._get(ListSessionsResponse, "sessions", params)

    def get_session(
        self, session_id: str, access_scope: AccessScope = "owned"
    ) -> APIFuture[GetSessionResponse]:
        """The training runs and samplers of one session."""
        return self._get(GetSessionResponse, f"sessions/{session_id}", {"access_scope": access_scope})

    def search_sessions(self, request: SessionSearchRequest) -> APIFuture[SessionSearchResponse]:
        """A page of sessions that meet every condition, newest first.

        The next page is the same request with the response's `next_cursor` as its `cursor`.
        """
        body = request.model_dump(mode="json", exclude_none=True)
        ask = self._connection.ask(SessionSearchResponse, "POST", "sessions/search", json=body)
        return self._connection.start(ask, "sessions/search")

    def assign_session_project(self, session_id: str, project_id: str) -> APIFuture[None]:
        """File a session under a project, with its runs and samplers."""
        return self._do("PUT", f"sessions/{session_id}/project", {"project_id": project_id})

    def get_sampler(self, sampler_id: str) -> APIFuture[GetSamplerResponse]:
        """What a sampler samples from."""
        return self._get(GetSamplerResponse, f"samplers/{sampler_id}")

    # ---- the server ----

    def get_server_capabilities(self) -> APIFuture[GetServerCapabilitiesResponse]:
        """The base models on offer."""
        return self._get(GetServerCapabilitiesResponse, "get_server_capabilities")

    def whoami(self) -> APIFuture[WhoamiResponse]:
        """Whom the credential stands for, where it can say so.

        Raises:
            CapabilityError: from the future; an API key names nobody, and no route of the
                protocol does. Services that hand out tokens write it into those.
        """

        async def refuse() -> WhoamiResponse:
            raise CapabilityError(
                f"an API key does not say whose it is, and {self._connection.endpoint.base_url} has no "
                "route that does; list_sessions() shows what this key may see"
            )

        return self._connection.start(refuse(), "whoami")

    def close(self) -> None:
        """Drop the connection. One that came from a ServiceClient stays; it is that client's to close."""
        if self._is_owner:
            self._connection.close()

    def _get(
        self, kind: type[ModelT], path: str, params: dict[str, str | int] | None = None
    ) -> APIFuture[ModelT]:
        return self._connection.start(self._connection.ask(kind, "GET", path, params=params), f"GET {path}")

    def _do(self, method: str, path: str, json: object = None) -> APIFuture[None]:
        async def work() -> None:
            await self._connection.send(method, path, json=json)

        return self._connection.start(work(), f"{method} {path}")

    def _delete(self, path: str) -> APIFuture[None]:
        return self._connection.start(self._connection.delete(path), f"DELETE {path}")

    def __repr__(self) -> str:
        return f"<RestClient {self._connection.endpoint.base_url}>"

    # The `tinker` SDK's spellings; see compat.py.
    list_training_runs_async = resolved(list_training_runs)
    get_training_run_async = resolved(get_training_run)
    get_training_run_by_tinker_path_async = resolved(get_training_run_by_tinker_path)
    list_checkpoints_async = resolved(list_checkpoints)
    list_user_checkpoints_async = resolved(list_user_checkpoints)
    delete_checkpoint_async = resolved(delete_checkpoint)
    delete_checkpoint_from_tinker_path_async = resolved(delete_checkpoint_from_tinker_path)
    set_checkpoint_ttl_from_tinker_path_async = resolved(set_checkpoint_ttl_from_tinker_path)
    publish_checkpoint_from_tinker_path_async = resolved(publish_checkpoint_from_tinker_path)
    unpublish_checkpoint_from_tinker_path_async = resolved(unpublish_checkpoint_from_tinker_path)
    copy_weights_async = resolved(copy_weights)
    get_external_weights_urls_async = resolved(get_external_weights_urls)
    get_checkpoint_archive_url_async = resolved(get_checkpoint_archive_url)
    get_checkpoint_archive_url_from_tinker_path_async = resolved(get_checkpoint_archive_url_from_tinker_path)
    list_sessions_async = resolved(list_sessions)
    get_session_async = resolved(get_session)
    assign_session_project_async = resolved(assign_session_project)
    get_sampler_async = resolved(get_sampler)


_parse = ParsedCheckpointTinkerPath.from_tinker_path


def _checkpoint_url(tinker_path: str) -> str:
    checkpoint = _parse(tinker_path)
    return f"training_runs/{checkpoint.training_run_id}/checkpoints/{checkpoint.checkpoint_id}"
