"""ServiceClient: the way in. Opens a session on a server, and makes the other clients."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from tinkerlite.compat import offloaded
from tinkerlite.config import ClientConfig, environment
from tinkerlite.connection import Connection
from tinkerlite.errors import (
    APIStatusError,
    BadRequestError,
    CapabilityError,
    InvalidRequest,
    UnprocessableEntityError,
)
from tinkerlite.future import APIFuture
from tinkerlite.polling import ResultType
from tinkerlite.rest_client import RestClient
from tinkerlite.results import LOAD_STATE, json_result
from tinkerlite.sampling_client import SamplingClient
from tinkerlite.session import FinishReason, Session
from tinkerlite.training_client import TrainingClient, checked_path, get_info
from tinkerlite.types import (
    GetServerCapabilitiesResponse,
    LoadWeightsResponse,
    LoraConfig,
    OptimizerConfig,
    WeightsInfoResponse,
)

_CREATE_MODEL: ResultType[LoadWeightsResponse] = json_result("create_model", LoadWeightsResponse)


class ServiceClient:
    """A session on one server.

        with tinkerlite.ServiceClient(base_url="local://HuggingFaceTB/SmolLM2-135M-Instruct") as service:
            training = service.create_lora_training_client("HuggingFaceTB/SmolLM2-135M-Instruct", rank=16)

    Args:
        user_metadata: kept with the session.
        project_id: whom the server bills; also read from TINKERLITE_PROJECT_ID.
        display_name: what listings call the session.
        base_url: `http(s)://...`, or `local://MODEL[,MODEL...]` for a server in this process, which
            stops, and forgets what was saved, when its last client is closed. Absent:
            TINKERLITE_BASE_URL, TINKER_BASE_URL, or a server on this machine.
        api_key: absent: TINKERLITE_API_KEY, TINKER_API_KEY; servers on this machine need none.
        default_headers_overrides: sent with every request, in place of our own of these names.
        config: timeouts and bounds.

    Raises:
        InvalidRequest, APIConnectionError, AuthenticationError: as `Connection`.
    """

    def __init__(
        self,
        user_metadata: dict[str, str] | None = None,
        project_id: str | None = None,
        *,
        display_name: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        default_headers_overrides: Mapping[str, str] | None = None,
        config: ClientConfig | None = None,
    ) -> None:
        self._connection = Connection(base_url, api_key, config, default_headers_overrides)
        self._project_id = project_id or environment("PROJECT_ID")
        self._session = Session(self._connection, user_metadata, self._project_id, display_name)

    @property
    def session_id(self) -> str:
        """The server's name for this session."""
        return self._session.id

    @property
    def connection(self) -> Connection:
        """The server behind it, for questions that no client of ours asks."""
        return self._connection

    def get_server_capabilities(self) -> GetServerCapabilitiesResponse:
        """The base models on offer, and what the server can do with them."""
        return self._connection.wait(
            self._connection.ask(GetServerCapabilitiesResponse, "GET", "get_server_capabilities")
        )

    # ---- training ----

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> TrainingClient:
        """A new training run: a LoRA adapter that changes nothing yet, and fresh optimizer state.

        Args:
            base_model: one of the server's models.
            rank: of the adapter's matrices.
            seed: of their random half; absent, the server draws one.
            train_mlp: adapt the feed-forward layers.
            train_attn: adapt the attention's projections.
            train_unembed: adapt the output layer.
            user_metadata: kept with the run.
            optimizer: the optimizer's family, for good; absent, AdamW.

        Raises:
            InvalidRequest: rank below 1, or nothing is to be trained.
            APIStatusError, RequestFailedError: the server does not offer that.
        """
        if rank < 1:
            raise InvalidRequest(f"rank is {rank}; it must be at least 1")
        if not (train_mlp or train_attn or train_unembed):
            raise InvalidRequest("nothing to train: one of train_mlp, train_attn, train_unembed must be true")
        lora = LoraConfig(
            rank=rank, seed=seed, train_mlp=train_mlp, train_attn=train_attn, train_unembed=train_unembed
        )
        body = {
            "base_model": base_model,
            "lora_config": lora.model_dump(exclude_none=True),
            **({"optimizer_config": optimizer.model_dump()} if optimizer else {}),
            **({"user_metadata": user_metadata} if user_metadata else {}),
        }
        return self._connection.wait(self._create(body))

    def create_training_client(
        self,
        base_model: str,
        user_metadata: dict[str, str] | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> TrainingClient:
        """A new training run of all weights of a base model: full fine-tuning.

        The official SDK has no method for this; the protocol does, as a run without a `lora_config`.
        Its weights are saved, loaded and sampled from as an adapter's are.

        Args:
            base_model: one of the server's models.
            user_metadata: kept with the run.
            optimizer: the optimizer's family, for good; absent, AdamW.

        Raises:
            APIStatusError, RequestFailedError: the server does not offer that, or has no memory for it.
            CapabilityError: the server made a LoRA adapter instead.
        """
        body = {
            "base_model": base_model,
            **({"optimizer_config": optimizer.model_dump()} if optimizer else {}),
            **({"user_metadata": user_metadata} if user_metadata else {}),
        }
        client = self._connection.wait(self._create(body))
        if client.get_info().is_lora:
            raise CapabilityError(
                f"the server trains a LoRA adapter on {base_model!r} where all weights were asked for; "
                "create_lora_training_client() says of which rank"
            )
        return client

    def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> TrainingClient:
        """A new training run that starts from saved weights (`save_state`), with fresh optimizer state.

        Args:
            path: `tinker://RUN/weights/NAME`.
            base_model: use these base weights instead of those the checkpoint was trained on.
            user_metadata: kept with the run.
            weights_access_token: for weights of another account, what its owner made for them.
            optimizer: the optimizer's family, for good; absent, AdamW.
        """
        config = {} if optimizer is None else {"optimizer_config": optimizer.model_dump()}
        return self._from_state(
            path, base_model, user_metadata, weights_access_token, optimizer=False, **config
        )

    def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
    ) -> TrainingClient:
        """The same with the saved optimizer state: training goes on as it would have."""
        return self._from_state(path, base_model, user_metadata, weights_access_token, optimizer=True)

    def _from_state(
        self,
        path: str,
        base_model: str | None,
        user_metadata: dict[str, str] | None,
        weights_access_token: str | None,
        *,
        optimizer: bool,
        **config: Any,
    ) -> TrainingClient:
        body: dict[str, Any] = {"path": checked_path(path), "optimizer": optimizer, **config}
        if weights_access_token is not None:
            body["weights_access_token"] = weights_access_token
        if base_model is not None:
            body["base_model"] = base_model
        if user_metadata:
            body["user_metadata"] = user_metadata
        return self._connection.wait(self._load(body))

    async def _create(self, body: dict[str, Any]) -> TrainingClient:
        return await self._new_run("create_model", body, _CREATE_MODEL)

    async def _load(self, body: dict[str, Any]) -> TrainingClient:
        try:
            return await self._new_run("load_weights", body, LOAD_STATE)
        except (BadRequestError, UnprocessableEntityError) as refusal:
            # Older servers load only into a run that exists already, and ask for its id.
            if isinstance(refusal, BadRequestError) and "model_id" not in refusal.message:
                raise
            try:
                saved = await self._connection.ask(
                    WeightsInfoResponse, "POST", "weights_info", json={"tinker_path": body["path"]}
                )
            except APIStatusError:
                raise refusal from None  # there is nothing to load
            lora = {"rank": saved.lora_rank} if saved.lora_rank else {}
            switches = ("train_mlp", "train_attn", "train_unembed")
            lora |= {name: getattr(saved, name) for name in switches if getattr(saved, name) is not None}
            base_model = body.get("base_model", saved.base_model)
            kept = {name: body[name] for name in ("user_metadata", "optimizer_config") if name in body}
            client = await self._create(
                {"base_model": base_model, **({"lora_config": lora} if lora else {}), **kept}
            )
            load = client.load_state_with_optimizer if body["optimizer"] else client.load_state
            await load(body["path"], body.get("weights_access_token"))
            return client

    async def _new_run(
        self, path: str, body: dict[str, Any], result_type: ResultType[LoadWeightsResponse]
    ) -> TrainingClient:
        number = self._session.next_run_number()
        addressed = {"type": path, "session_id": self._session.id, "model_seq_id": number, **body}
        receipt = await self._connection.submit(path, json=addressed)
        result = await self._connection.result(receipt, result_type)
        # The protocol fixes how runs are named, for servers that do not say.
        model_id = result.model_id or f"{self._session.id}:train:{number}"
        return TrainingClient(self._session, await get_info(self._connection, model_id))

    # ---- sampling and holdings ----

    def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        *,
        record_stability_info: bool = False,
    ) -> SamplingClient:
        """A sampler on saved weights (`tinker://...`), or on a base model as it is.

        Args:
            model_path: as `save_weights_for_sampler` returned it.
            base_model: one of the server's models.
            record_stability_info: let the server keep what `stable_reinforce` needs of each sample;
                the reference server refuses that.
        """
        creating = SamplingClient.create(self._session, model_path, base_model, record_stability_info)
        return self._connection.wait(creating)

    def copy_weights(
        self, path: str, *, ttl_seconds: int | None = None, weights_access_token: str | None = None
    ) -> APIFuture[str]:
        """Make a checkpoint one's own, filed under this client's project; see `RestClient.copy_weights`."""
        return self.create_rest_client().copy_weights(
            path, self._project_id, ttl_seconds=ttl_seconds, weights_access_token=weights_access_token
        )

    def create_rest_client(self) -> RestClient:
        """Questions about runs, checkpoints and sessions, over this client's connection."""
        return RestClient(self._connection)

    # ---- the end ----

    def close(self, status: FinishReason = "success", detail: str | None = None) -> APIFuture[None]:
        """End the session, and drop the connection. What is still being waited for is given up.

        It is over when this returns; the future is there for those who wait for one.
        """
        self._session.finish(status, detail)
        self._connection.close()
        closed: Future[None] = Future()
        closed.set_result(None)
        return APIFuture(closed, "close")

    def __enter__(self) -> ServiceClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif not isinstance(error, Exception):  # Ctrl-C, which in async code is a CancelledError
            self.close("interrupted")
        else:
            self.close("errored", type(error).__name__)

    def __repr__(self) -> str:
        endpoint = self._connection.endpoint
        where = f"local://{','.join(endpoint.local_models)}" if endpoint.local_models else endpoint.base_url
        return f"<ServiceClient {self._session.id} on {where}>"

    # The `tinker` SDK's spellings; see compat.py.
    get_server_capabilities_async = offloaded(get_server_capabilities)
    create_lora_training_client_async = offloaded(create_lora_training_client)
    create_training_client_async = offloaded(create_training_client)
    create_training_client_from_state_async = offloaded(create_training_client_from_state)
    create_training_client_from_state_with_optimizer_async = offloaded(
        create_training_client_from_state_with_optimizer
    )
    create_sampling_client_async = offloaded(create_sampling_client)
