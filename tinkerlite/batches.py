"""A batch on its way: packed when called for, sent chunk by chunk, its results combined.

Knows the two forms that `forward_backward` requests take. Knows nothing about order or losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tinkerlite.chunking import combine_outputs, split_into_chunks
from tinkerlite.connection import Connection
from tinkerlite.errors import APIStatusError
from tinkerlite.json_form import forward_backward_to_json
from tinkerlite.ordering import Turn
from tinkerlite.progress import ProgressClock
from tinkerlite.results import forward_backward_result
from tinkerlite.types import Datum, ForwardBackwardOutput, ForwardBackwardRequest, UntypedAPIFuture
from tinkerlite.wire import PROTOBUF_CONTENT_TYPE, encode_forward_backward_request

_NO_PROTOBUF_HERE = (415, 422)


@dataclass(frozen=True)
class PackedChunk:
    """One request, already in bytes but for its number, which it gets when it is sent."""

    request: ForwardBackwardRequest
    content: bytes


def pack(
    connection: Connection,
    model_id: str,
    data: Sequence[Datum],
    loss_fn: str,
    loss_fn_config: Mapping[str, float | str] | None,
    *,
    forward_only: bool,
) -> list[PackedChunk]:
    """Cut a batch by the server's limits and encode it, in the caller's thread.

    What the caller does to the arrays afterwards does not reach the server.
    """
    limits = connection.server_config
    chunks = split_into_chunks(data, limits.fwdbwd_max_chunk_len, limits.fwdbwd_max_chunk_bytes_count)
    requests = [
        ForwardBackwardRequest(
            model_id=model_id,
            seq_id=0,
            data=chunk,
            loss_fn=loss_fn,
            loss_fn_config=dict(loss_fn_config or {}),
            forward_only=forward_only,
        )
        for chunk in chunks
    ]
    return [PackedChunk(request, encode_forward_backward_request(request)) for request in requests]


async def send_batch(
    connection: Connection, turn: Turn, chunks: Sequence[PackedChunk]
) -> list[UntypedAPIFuture]:
    """Send the chunks in order; one receipt each."""
    receipts: list[UntypedAPIFuture] = []
    try:
        for chunk in chunks:
            receipts.append(await turn.send(lambda seq_id, chunk=chunk: _send(connection, chunk, seq_id)))
    except APIStatusError as error:
        if receipts and not chunks[0].request.forward_only:
            error.add_note(
                f"{len(receipts)} of {len(chunks)} chunks of this batch were accepted; their gradients count."
            )
        raise
    return receipts


async def _send(connection: Connection, chunk: PackedChunk, seq_id: int) -> UntypedAPIFuture:
    """In protobuf; to a server that never took any and refuses it, in JSON."""
    refusal: APIStatusError | None = None
    if connection.speaks_protobuf is not False:
        try:
            receipt = await connection.submit(
                "forward_backward",
                content=_numbered(chunk, seq_id),
                headers={"Content-Type": PROTOBUF_CONTENT_TYPE},
            )
        except APIStatusError as error:
            if error.status_code not in _NO_PROTOBUF_HERE or connection.speaks_protobuf:
                raise
            refusal = error
        else:
            connection.speaks_protobuf = True
            return receipt
    body = forward_backward_to_json(replace(chunk.request, seq_id=seq_id))
    try:
        receipt = await connection.submit(
            "forward" if chunk.request.forward_only else "forward_backward", json=body
        )
    except APIStatusError:
        if refusal is None:
            raise
        raise refusal from None
    connection.speaks_protobuf = False
    return receipt


def _numbered(chunk: PackedChunk, seq_id: int) -> bytes:
    # Protobuf messages written one after the other read as their union.
    number = ForwardBackwardRequest(model_id="", seq_id=seq_id, data=[], loss_fn="")
    return chunk.content + encode_forward_backward_request(number)


async def collect(
    connection: Connection, receipts: Sequence[UntypedAPIFuture], name: str, clock: ProgressClock
) -> ForwardBackwardOutput:
    """Wait for all chunks, and combine them."""
    result_type = forward_backward_result(name)
    return combine_outputs([await connection.result(receipt, result_type, clock) for receipt in receipts])
