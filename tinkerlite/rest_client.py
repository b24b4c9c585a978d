"""RestClient: what the server keeps (runs, checkpoints, sessions), to list and to tidy up.

Each method is one question, answered at once; all return an APIFuture like the other clients'.
"""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel

from tinkerlite.compat import resolved
from tinkerlite.config import ClientConfig
from tinkerlite.connection import Connection
from tinkerlite.errors import InvalidRequest
from tinkerlite.future import APIFuture
from tinkerlite.types import (
    CheckpointsListResponse,
    GetSamplerResponse,
    GetServerCapabilitiesResponse,
    GetSessionResponse,
    ListSessionsResponse,
    TrainingRun,
    TrainingRunsResponse,
    WeightsInfoResponse,
)

ModelT = TypeVar("ModelT", bound=BaseModel)
AccessScope = Literal["owned", "accessible"]


class RestClient:
    """Questions about the server's holdings. Needs no session, so it leaves none behind."""

    def __init__(
        self,
        connection: Connection | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        config: ClientConfig | None = None,
    ) -> None:
        self._connection = connection or Connection(base_url, api_key, config)

    # ---- training runs ----

    def list_training_runs(
        self, limit: int = 20, offset: int = 0, access_scope: AccessScope = "owned"
    ) -> APIFuture[TrainingRunsResponse]:
        """A page of training runs."""
        params = {"limit": limit, "offset": offset, "access_scope": access_scope}
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
        return self.get_training_run(_parse(tinker_path)[0], access_scope)

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
        return self._do("DELETE", f"training_runs/{training_run_id}/checkpoints/{checkpoint_id}")

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]:
        """The same, by path."""
        return self.delete_checkpoint(*_parse(tinker_path))

    def set_checkpoint_ttl_from_tinker_path(
        self, tinker_path: str, ttl_seconds: int | None
    ) -> APIFuture[None]:
        """Let a checkpoint expire after this long from now; None keeps it."""
        run, checkpoint = _parse(tinker_path)
        path = f"training_runs/{run}/checkpoints/{checkpoint}/ttl"
        return self._do("PUT", path, {"ttl_seconds": ttl_seconds})

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

    def get_sampler(self, sampler_id: str) -> APIFuture[GetSamplerResponse]:
        """What a sampler samples from."""
        return self._get(GetSamplerResponse, f"samplers/{sampler_id}")

    # ---- the server ----

    def get_server_capabilities(self) -> APIFuture[GetServerCapabilitiesResponse]:
        """The base models on offer."""
        return self._get(GetServerCapabilitiesResponse, "get_server_capabilities")

    def close(self) -> None:
        """Drop the connection. One that came from a ServiceClient is the ServiceClient's to close."""
        self._connection.close()

    def _get(
        self, kind: type[ModelT], path: str, params: dict[str, str | int] | None = None
    ) -> APIFuture[ModelT]:
        return self._connection.start(self._connection.ask(kind, "GET", path, params=params), f"GET {path}")

    def _do(self, method: str, path: str, json: object = None) -> APIFuture[None]:
        async def work() -> None:
            await self._connection.send(method, path, json=json)

        return self._connection.start(work(), f"{method} {path}")

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
    list_sessions_async = resolved(list_sessions)
    get_session_async = resolved(get_session)
    get_sampler_async = resolved(get_sampler)


def _parse(tinker_path: str) -> tuple[str, str]:
    """The run's id and the checkpoint's (KIND/NAME) in `tinker://RUN/KIND/NAME`."""
    run, _, checkpoint = tinker_path.removeprefix("tinker://").partition("/")
    if not tinker_path.startswith("tinker://") or not run or checkpoint.count("/") != 1:
        raise InvalidRequest(f"{tinker_path!r} is not of the form tinker://RUN/KIND/NAME")
    return run, checkpoint
