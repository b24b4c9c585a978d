"""TrainingClient: one training run. Gradients, optimizer steps, saving and loading.

Every call that makes the server work returns an APIFuture at once; the work is sent in the order
of the calls. So `forward_backward` and `optim_step` can be called back to back and waited for later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from tinkerlite.compat import Ready, offloaded, submitted
from tinkerlite.connection import Connection
from tinkerlite.custom_loss import NumpyLoss, require_torch
from tinkerlite.errors import APIResponseValidationError, InvalidRequest
from tinkerlite.future import APIFuture
from tinkerlite.operations import CustomLoss, Operations
from tinkerlite.results import LOAD_STATE, OPTIM_STEP, SAVE_EXTERNAL, SAVE_FOR_SAMPLER, SAVE_STATE
from tinkerlite.sampling_client import SamplerSource, SamplingClient
from tinkerlite.session import Session
from tinkerlite.tokenizers import Tokenizer, load_tokenizer
from tinkerlite.types import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    GetInfoResponse,
    LoadWeightsResponse,
    LossFnType,
    OptimParams,
    OptimStepResponse,
    SamplingClientKind,
    SaveWeightsExternalResponse,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
)

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


class TrainingClient(Ready):
    """A training run on the server: base weights, what is trained of them, and optimizer state.

    Made by `ServiceClient.create_lora_training_client` and its siblings. May be used from several
    threads. All losses are sums over tokens and datums; gradients add up until `optim_step`.
    """

    def __init__(self, session: Session, info: GetInfoResponse) -> None:
        self._session = session
        self._connection: Connection = session.connection
        self._info = info
        self.model_id = info.model_id
        self._operations = Operations(self._connection, self.model_id)

    # ---- gradients ----

    def forward(
        self,
        data: Sequence[Datum],
        loss_fn: LossFnType | str,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """Loss and logprobs, leaving gradients alone. Arguments as for `forward_backward`."""
        return self._operations.start_batch("forward", data, loss_fn, loss_fn_config, forward_only=True)

    def forward_backward(
        self,
        data: Sequence[Datum],
        loss_fn: LossFnType | str,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """Loss and logprobs, and the gradients of the summed loss, added to those already there.

        Args:
            data: at least one datum; a batch of any size, cut into requests as the server asks.
            loss_fn: "cross_entropy", "importance_sampling", "ppo", "cispo", "dro" or another that
                the server knows.
            loss_fn_config: the loss's options, such as `clip_low_threshold`.

        Raises:
            InvalidRequest, InvalidDatum: at once, naming datum and field; nothing was sent.
        """
        return self._operations.start_batch(
            "forward_backward", data, loss_fn, loss_fn_config, forward_only=False
        )

    def forward_backward_custom(
        self,
        data: Sequence[Datum],
        loss_fn: CustomLoss,
        *,
        loss_type_input: Literal["logprobs"] | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """`forward_backward` of a loss of your own: any differentiable function of the logprobs, in torch
        or, as a `NumpyLoss`, with its own gradients.

            def loss_fn(data: list[Datum], logprobs: list[torch.Tensor]) -> tuple[Tensor, dict[str, float]]

        It runs in a thread of its own, between two passes of the server; `logprobs[i]` is shaped like
        `target_tokens` of `data[i]`, whose other inputs are the function's alone. Later calls wait in
        line until the second pass is sent. If the function fails, nothing was accumulated, and what
        is called before you have heard of that is not sent: before its future has raised, or the future
        of such a call.

        Returns:
            As `forward_backward`; among the metrics are the function's own, its loss as
            `loss:sum`, and the linear stand-in's as `surrogate_loss:sum`.

        Args:
            data: what the function gets.
            loss_fn: the function.
            loss_type_input: what the loss is a function of; there are only logprobs.

        Raises:
            CapabilityError: torch is not installed.
        """
        if loss_type_input not in (None, "logprobs"):
            raise InvalidRequest(f"loss_type_input is {loss_type_input!r}; a loss is a function of logprobs")
        if not isinstance(loss_fn, NumpyLoss):
            require_torch()
        return self._operations.start_custom("forward_backward_custom", data, loss_fn)

    # ---- optimizer ----

    def optim_step(
        self, optim_params: OptimParams | None = None, *, adam_params: AdamParams | None = None
    ) -> APIFuture[OptimStepResponse]:
        """One step of the optimizer on the gradients accumulated so far, which are then zeroed.

        Args:
            optim_params: learning rate and the rest, for this step; schedules live with the caller.
                Of the family that the run was made with.
            adam_params: another name for it.
        """
        params = optim_params or adam_params
        if params is None or (optim_params is not None and adam_params is not None):
            raise InvalidRequest(
                "optim_step takes one AdamParams, as in optim_step(AdamParams(learning_rate=1e-4))"
            )
        field = "adam_params" if isinstance(params, AdamParams) else "optimizer_params"
        body = {"type": "optim_step", field: params.model_dump()}
        return self._operations.start("optim_step", body, OPTIM_STEP)

    # ---- saving and loading ----

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[SaveWeightsResponse]:
        """Save weights and optimizer state, to train on from; `path` in the result finds them again.

        Args:
            name: letters, digits, `_`, `.` and `-`.
            ttl_seconds: when the server may delete it; absent, never.
            overwrite: replace one of the same name, which is otherwise refused.
            user_metadata: kept with the checkpoint.
        """
        body = {
            "type": "save_weights",
            "path": _checked_name(name),
            **_given(ttl_seconds=ttl_seconds, user_metadata=user_metadata, overwrite=overwrite or None),
        }
        return self._operations.start("save_weights", body, SAVE_STATE)

    def load_state(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[LoadWeightsResponse]:
        """Replace the run's weights by saved ones (`tinker://...`), with fresh optimizer state."""
        return self._load(path, weights_access_token, optimizer=False)

    def load_state_with_optimizer(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[LoadWeightsResponse]:
        """Replace weights and optimizer state by saved ones: training goes on as it would have."""
        return self._load(path, weights_access_token, optimizer=True)

    def _load(
        self, path: str, weights_access_token: str | None, *, optimizer: bool
    ) -> APIFuture[LoadWeightsResponse]:
        body = {
            "type": "load_weights",
            "path": checked_path(path),
            "optimizer": optimizer,
            **_given(weights_access_token=weights_access_token),
        }
        return self._operations.start("load_weights", body, LOAD_STATE)

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None, user_metadata: dict[str, str] | None = None
    ) -> APIFuture[SaveWeightsForSamplerResponse]:
        """Save the weights to sample from; give the result's `path` to `create_sampling_client`."""
        body = {
            "type": "save_weights_for_sampler",
            "path": _checked_name(name),
            **_given(ttl_seconds=ttl_seconds, user_metadata=user_metadata),
        }
        return self._operations.start("save_weights_for_sampler", body, SAVE_FOR_SAMPLER)

    def save_weights_external(
        self,
        name: str,
        ttl_seconds: int | None = None,
        age_encryption_recipients: list[str] | None = None,
    ) -> APIFuture[SaveWeightsExternalResponse]:
        """Save the weights in Hugging Face's layout, for others to load; to fetch with `download_checkpoint`.

        Args:
            name: letters, digits, `_`, `.` and `-`.
            ttl_seconds: when the server may delete it; absent, never.
            age_encryption_recipients: up to 10 public keys, of the `age` tool (`age1...`) or SSH, any of
                whose owners can read the files; those are then called `NAME.age`, and `age -d` reads them.
        """
        body = {
            "type": "save_weights_external",
            "path": _checked_name(name),
            **_given(ttl_seconds=ttl_seconds, age_encryption_recipients=age_encryption_recipients),
        }
        return self._operations.start("save_weights_external", body, SAVE_EXTERNAL)

    def save_weights_and_get_sampling_client(
        self,
        name: str | None = None,
        kind: SamplingClientKind = "snapshot",
        *,
        record_stability_info: bool = False,
    ) -> SamplingClient:
        """A sampler on the weights as they are now; later steps do not change it.

        Args:
            name: keep the weights under this name as well; absent, they stay in memory for as long as the
                server keeps them (the reference server: a run's eight last used).
            kind: "inflight" lets the server hand the sampler newer weights of this run.
            record_stability_info: as for `ServiceClient.create_sampling_client`.
        """
        saving = self._save(name, kind)
        return self._connection.wait(self._sampler_on(saving, name, record_stability_info))

    async def save_weights_and_get_sampling_client_async(
        self,
        name: str | None = None,
        kind: SamplingClientKind = "snapshot",
        *,
        record_stability_info: bool = False,
    ) -> SamplingClient:
        """`save_weights_and_get_sampling_client`, as the `tinker` SDK spells it in async code."""
        saving = self._save(name, kind)
        making = self._sampler_on(saving, name, record_stability_info)
        return await self._connection.start(making, "save_weights_and_get_sampling_client")

    def _save(self, name: str | None, kind: SamplingClientKind) -> APIFuture[SaveWeightsForSamplerResponse]:
        if name is not None:
            return self.save_weights_for_sampler(name)
        body = {
            "type": "save_weights_for_sampler",
            **_given(kind=None if kind == "snapshot" else kind),
            "sampling_session_seq_id": self._session.next_sampler_number(),
        }
        return self._operations.start("save_weights_for_sampler", body, SAVE_FOR_SAMPLER)

    async def _sampler_on(
        self,
        saving: APIFuture[SaveWeightsForSamplerResponse],
        name: str | None,
        record_stability_info: bool,
    ) -> SamplingClient:
        saved = await saving
        if name is not None:
            path = _present(saved.path, "path")
            return await SamplingClient.create(self._session, path, None, record_stability_info)
        sampler_id = _present(saved.sampling_session_id, "sampling_session_id")
        source = SamplerSource(sampler_id, self._base_model(), record_stability_info)
        return SamplingClient(self._connection, source, self._session)

    def create_sampling_client(
        self, model_path: str, *, record_stability_info: bool = False
    ) -> SamplingClient:
        """A sampler on weights that this run saved."""
        creating = SamplingClient.create(self._session, model_path, None, record_stability_info)
        return self._connection.wait(creating)

    # ---- what it is ----

    def get_info(self) -> GetInfoResponse:
        """What is trained: base model, LoRA rank, tokenizer."""
        return self._connection.wait(get_info(self._connection, self.model_id))

    def get_tokenizer(self) -> Tokenizer:
        """The base model's tokenizer.

        Raises:
            CapabilityError: transformers is not installed.
        """
        return load_tokenizer(self._connection, self._base_model(), self._info.model_data.tokenizer_id)

    def _base_model(self) -> str:
        return _present(self._info.model_data.model_name or self._info.model_name, "model_name")

    def __repr__(self) -> str:
        rank = f", rank {self._info.lora_rank}" if self._info.lora_rank else ""
        return f"<TrainingClient {self.model_id}: {self._info.model_data.model_name}{rank}>"

    # The `tinker` SDK's spellings; see compat.py.
    forward_async = submitted(forward)
    forward_backward_async = submitted(forward_backward)
    forward_backward_custom_async = submitted(forward_backward_custom)
    optim_step_async = submitted(optim_step)
    save_state_async = submitted(save_state)
    load_state_async = submitted(load_state)
    load_state_with_optimizer_async = submitted(load_state_with_optimizer)
    save_weights_for_sampler_async = submitted(save_weights_for_sampler)
    save_weights_external_async = submitted(save_weights_external)
    create_sampling_client_async = offloaded(create_sampling_client)
    get_info_async = offloaded(get_info)


async def get_info(connection: Connection, model_id: str) -> GetInfoResponse:
    """Ask the server what a run trains."""
    body = {"model_id": model_id, "type": "get_info"}
    return await connection.ask(GetInfoResponse, "POST", "get_info", json=body)


def checked_path(path: str) -> str:
    """A `tinker://` path.

    Raises:
        InvalidRequest: it is something else.
    """
    if not path.startswith("tinker://"):
        raise InvalidRequest(f"{path!r} is not a tinker:// path; save_state and its siblings return them")
    return path


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} cannot name a checkpoint; use letters, digits, '_', '.' and '-'")
    return name


def _given(**fields: object) -> dict[str, object]:
    """Those that are not None: what is not given is not mentioned, as some servers refuse unknown fields."""
    return {name: value for name, value in fields.items() if value is not None}


def _present(value: str | None, field: str) -> str:
    if value is None:
        raise APIResponseValidationError(message=f"the server's answer lacks {field!r}")
    return value
