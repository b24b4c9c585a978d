"""The route that takes a loss of the caller's own: a traced function, as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from tinkerlite_server.engine.protocols import LossGraph, LossInput, LossNode
from tinkerlite_server.routes.exchange import (
    Body,
    Owner,
    Served,
    digest,
    parse,
    promise,
    read_json,
)

router = APIRouter()


class Input(Body):
    """An input of the loss."""

    name: str = Field(max_length=256)
    rank: Literal[0, 1, 2]


class Node(Body):
    """A step of the traced function; the engine reads its arguments."""

    op: str
    name: str = Field(max_length=256)
    target: str
    args: Sequence[Any] = ()
    kwargs: dict[str, Any] = Field(default_factory=dict)


class Graph(Body):
    """The traced function."""

    format: Literal[1] = 1
    nodes: list[Node]


class CreateCustomLoss(Body):
    """Body of create_custom_loss."""

    session_id: str
    custom_loss_seq_id: int = Field(ge=0)
    name: str = Field(max_length=256)
    inputs: list[Input]
    graph: Graph


@router.post("/create_custom_loss")
async def create_custom_loss(request: Request, service: Served, owner: Owner) -> Response:
    """Check a loss, and keep it for `forward_backward` requests of its session."""
    service.require_custom_losses()
    raw = await read_json(request, service.settings.limits.max_loss_bytes)
    body = parse(CreateCustomLoss, raw)
    service.store.live_session(body.session_id, owner)
    service.saw(body.session_id)
    graph = LossGraph(
        loss_id=f"{body.session_id}:loss:{body.custom_loss_seq_id}",
        name=body.name,
        inputs=[LossInput(name=each.name, rank=each.rank) for each in body.inputs],
        nodes=[
            LossNode(op=node.op, name=node.name, target=node.target, args=node.args, kwargs=node.kwargs)
            for node in body.graph.nodes
        ],
    )
    key = ("custom_loss", body.session_id, body.custom_loss_seq_id)
    return promise(await service.add_custom_loss(owner, body.session_id, key, digest(raw), graph))
