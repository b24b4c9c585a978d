"""Routes that make training runs, load into them, describe and free them."""

from __future__ import annotations

import secrets
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from tinkerlite import types
from tinkerlite_server.engine.protocols import AdapterConfig
from tinkerlite_server.errors import BadRequest
from tinkerlite_server.operations import UNNUMBERED, CreateRun, LoadRun, Operation, UnloadRun
from tinkerlite_server.routes.exchange import (
    Body,
    Owner,
    Served,
    digest,
    numbered,
    parse,
    promise,
    read_json,
    reader,
    repeat_key,
    reply,
)
from tinkerlite_server.service import Service
from tinkerlite_server.settings import Limits
from tinkerlite_server.tables import CheckpointRow

router = APIRouter()


class OptimizerConfig(Body):
    """The optimizer family of a run."""

    type: str = "adamw"


class CreateModel(Body):
    """Body of create_model."""

    session_id: str
    model_seq_id: int = Field(ge=0)
    base_model: str
    lora_config: types.LoraConfig | None = None
    optimizer_config: OptimizerConfig = OptimizerConfig()
    user_metadata: dict[str, Any] | None = None


@router.post("/create_model")
async def create_model(request: Request, service: Served, owner: Owner) -> Response:
    """Make a training run: a fresh LoRA adapter on a base model, or a copy of all its weights."""
    raw = await read_json(request)
    body = parse(CreateModel, raw)
    service.store.live_session(body.session_id, owner)
    service.saw(body.session_id)
    info = service.model(body.base_model)
    _check_optimizer(body.optimizer_config)
    adapter = _adapter(body.lora_config, service.settings.limits)
    model_id = f"{body.session_id}:train:{body.model_seq_id}"

    def operation(request_id: str) -> CreateRun:
        return CreateRun(
            request_id=request_id, model_id=model_id, seq_id=0, base_model=info.name, adapter=adapter
        )

    request_id = service.submit_run(
        owner,
        body.session_id,
        digest(raw),
        operation,
        adapter=adapter,
        user_metadata=body.user_metadata or {},
    )
    return promise(request_id, model_id=model_id)


def _adapter(config: types.LoraConfig | None, limits: Limits) -> AdapterConfig | None:
    if config is None:
        return None
    if config.rank > limits.max_lora_rank:
        raise BadRequest(f"lora_config.rank is {config.rank}; it must be 1 to {limits.max_lora_rank}")
    if not (config.train_attn or config.train_mlp or config.train_unembed):
        raise BadRequest("lora_config trains nothing: set train_attn, train_mlp or train_unembed")
    seed = secrets.randbits(63) if config.seed is None else config.seed
    if not 0 <= seed < 2**64:
        raise BadRequest(f"lora_config.seed is {seed}; it must be 0 to 2^64 - 1")
    return AdapterConfig(
        rank=config.rank,
        alpha=types.LORA_ALPHA,
        seed=seed,
        train_attn=config.train_attn,
        train_mlp=config.train_mlp,
        train_unembed=config.train_unembed,
    )


def _check_optimizer(config: OptimizerConfig) -> None:
    if config.type != "adamw":
        raise BadRequest(f"optimizer_config.type is {config.type!r}; this server has 'adamw' alone")


class LoadAsNew(Body):
    """Body of load_weights that makes a new run of a session."""

    path: str
    optimizer: bool
    session_id: str
    model_seq_id: int = Field(ge=0)
    base_model: str | None = None
    optimizer_config: OptimizerConfig = OptimizerConfig()
    user_metadata: dict[str, Any] | None = None
    weights_access_token: str | None = None


class LoadInto(Body):
    """Body of load_weights that replaces the weights of a run."""

    path: str
    optimizer: bool
    model_id: str
    seq_id: int | None = Field(default=None, ge=0)
    weights_access_token: str | None = None


@router.post("/load_weights")
async def load_weights(request: Request, service: Served, owner: Owner) -> Response:
    """Make a run from a training checkpoint, or replace the weights of a run by those of one."""
    raw = await read_json(request)
    into, as_new = raw.get("model_id") is not None, raw.get("session_id") is not None
    if into == as_new:
        raise BadRequest("name either session_id and model_seq_id (a new run), or model_id and seq_id")
    if as_new:
        return _load_as_new(parse(LoadAsNew, raw), digest(raw), service, owner)
    with numbered(service, owner, "load_weights", raw["model_id"], raw.get("seq_id")):
        return _load_into(parse(LoadInto, raw), digest(raw), service, owner)


def _load_as_new(body: LoadAsNew, content: bytes, service: Service, owner: str) -> Response:
    _check_optimizer(body.optimizer_config)
    service.store.live_session(body.session_id, owner)
    service.saw(body.session_id)
    checkpoint = _training_checkpoint(body, service, owner)
    if body.base_model not in (None, checkpoint.base_model):
        raise BadRequest(
            f"base_model is {body.base_model!r}, and {body.path} was trained on {checkpoint.base_model!r}; "
            "weights fit their own base model alone"
        )
    info = service.model(checkpoint.base_model)
    model_id = f"{body.session_id}:train:{body.model_seq_id}"

    def operation(request_id: str) -> LoadRun:
        return LoadRun(
            request_id=request_id,
            model_id=model_id,
            seq_id=0,
            base_model=info.name,
            path=body.path,
            checkpoint_id=checkpoint.id,
            optimizer=body.optimizer,
        )

    request_id = service.submit_run(
        owner,
        body.session_id,
        content,
        operation,
        adapter=checkpoint.adapter_config,
        user_metadata=body.user_metadata or {},
    )
    return promise(request_id, model_id=model_id)


def _load_into(body: LoadInto, content: bytes, service: Service, owner: str) -> Response:
    run = service.store.live_run(body.model_id, owner)
    service.saw(run.session_id)
    checkpoint = _training_checkpoint(body, service, owner)
    if checkpoint.base_model != run.base_model:
        raise BadRequest(
            f"{body.path} was trained on {checkpoint.base_model!r}, and {run.id} trains {run.base_model!r}"
        )

    def operation(request_id: str) -> Operation:
        return LoadRun(
            request_id=request_id,
            model_id=run.id,
            seq_id=body.seq_id or UNNUMBERED,
            base_model=run.base_model,
            path=body.path,
            checkpoint_id=checkpoint.id,
            optimizer=body.optimizer,
        )

    request_id = service.submit(owner, repeat_key(run.id, body.seq_id), content, operation)
    return promise(request_id, model_id=run.id)


def _training_checkpoint(body: LoadAsNew | LoadInto, service: Service, owner: str) -> CheckpointRow:
    checkpoint = service.store.checkpoint(body.path, reader(service, owner, body.weights_access_token))
    if checkpoint.kind != "weights":
        raise BadRequest(
            f"{body.path} is of kind {checkpoint.kind}; training goes on from tinker://RUN/weights/NAME, "
            "which save_state() writes"
        )
    return checkpoint


# ---- describing and freeing ----


class ModelId(Body):
    """Body of get_info and unload_model."""

    model_id: str


@router.post("/get_info")
async def get_info(request: Request, service: Served, owner: Owner) -> Response:
    """What a run trains."""
    run = service.store.live_run(parse(ModelId, await read_json(request)).model_id, owner)
    service.saw(run.session_id)
    adapter = run.adapter_config
    return reply(
        types.GetInfoResponse(
            model_id=run.id,
            model_data=types.ModelData(
                arch=service.model(run.base_model).arch,
                model_name=run.base_model,
                tokenizer_id=run.base_model,
            ),
            is_lora=adapter is not None,
            lora_rank=adapter.rank if adapter else None,
            lora_alpha=adapter.alpha if adapter else None,
            model_name=run.base_model,
        )
    )


@router.post("/unload_model")
async def unload_model(request: Request, service: Served, owner: Owner) -> Response:
    """Free a run once what it was sent before is done."""
    raw = await read_json(request)
    run = service.store.live_run(parse(ModelId, raw).model_id, owner)

    def operation(request_id: str) -> Operation:
        return UnloadRun(request_id=request_id, model_id=run.id, seq_id=UNNUMBERED)

    return promise(service.submit(owner, ("unload", run.id), digest(raw), operation), model_id=run.id)


class TinkerPath(Body):
    """Body of weights_info."""

    tinker_path: str


@router.post("/weights_info")
async def weights_info(request: Request, service: Served, owner: Owner) -> Response:
    """What a checkpoint holds."""
    path = parse(TinkerPath, await read_json(request)).tinker_path
    checkpoint = service.store.checkpoint(path, owner)
    adapter = checkpoint.adapter_config
    return reply(
        types.WeightsInfoResponse(
            base_model=checkpoint.base_model,
            is_lora=adapter is not None,
            lora_rank=adapter.rank if adapter else None,
            lora_alpha=adapter.alpha if adapter else None,
            train_unembed=adapter.train_unembed if adapter else True,
            train_mlp=adapter.train_mlp if adapter else True,
            train_attn=adapter.train_attn if adapter else True,
        )
    )
