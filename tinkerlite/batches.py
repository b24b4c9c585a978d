"""A batch on its way: packed when called for, sent chunk by chunk, its results combined.

Knows the two forms that `forward_backward` requests take. Knows nothing about order or losses.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

from tinkerlite.chunking import combine_outputs, split_into_chunks
from tinkerlite.compression import compressed
from tinkerlite.connection import Connection
from tinkerlite.errors import APIConnectionError, APIStatusError, InvalidDatum, InvalidInput
from tinkerlite.json_form import forward_backward_to_json
from tinkerlite.ordering import Turn, is_unread
from tinkerlite.progress import ProgressClock
from tinkerlite.results import forward_backward_result
from tinkerlite.retry import is_transient
from tinkerlite.types import Datum, ForwardBackwardOutput, ForwardBackwardRequest, UntypedAPIFuture
from tinkerlite.wire import PROTOBUF_CONTENT_TYPE, forward_backward_parts

_TRIPS_OVER_PROTOBUF = (415, 422, 500)
"""How servers that read JSON alone answer a body in protobuf."""


@dataclass(frozen=True)
class PackedChunk:
    """One request, already in bytes but for its number, which it gets when it is sent."""

    request: ForwardBackwardRequest
    parts: list[bytes]

    def numbered(self, seq_id: int) -> bytes:
        """The body, with its number behind it."""
        number = ForwardBackwardRequest(model_id="", seq_id=seq_id, data=[], loss_fn="")
        return b"".join([*self.parts, *forward_backward_parts(number)])


def snapshot(data: Sequence[Datum]) -> list[Datum]:
    """The datums with arrays of their own, which whoever made the others cannot change."""
    return [replace(datum, loss_fn_inputs=deepcopy(datum.loss_fn_inputs)) for datum in data]


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

    Raises:
        InvalidDatum: a number that is no token id.
        WireError: a chunk of a kind that no request to train can carry.
    """
    if not connection.speaks_protobuf:  # JSON is made when it is sent
        data = snapshot(data)
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
    firsts = accumulate([len(request.data) for request in requests], initial=0)
    try:
        return [
            PackedChunk(request, forward_backward_parts(request, first))
            for request, first in zip(requests, firsts, strict=False)
        ]
    except InvalidInput as error:
        raise InvalidDatum(str(error)) from None


async def send_batch(
    connection: Connection, turn: Turn, chunks: Sequence[PackedChunk]
) -> list[UntypedAPIFuture]:
    """Send the chunks, side by side if the server can take that; one receipt each, in order.

    As long as it is not known in which form the server takes them, one after the other.
    """
    receipts = list[UntypedAPIFuture]()
    refusal: APIStatusError | None = None
    if len(chunks) > 1 and connection.server_config.parallel_fwdbwd_chunks and connection.speaks_protobuf:
        for outcome in await turn.send_together([partial(_send, connection, chunk) for chunk in chunks]):
            if isinstance(outcome, UntypedAPIFuture):
                receipts.append(outcome)
            else:
                refusal = refusal or outcome
    else:
        try:
            for chunk in chunks:
                receipts.append(await turn.send(partial(_send, connection, chunk)))
        except APIStatusError as error:
            refusal = error
    if not chunks[0].request.forward_only:
        _note_gradients(turn, len(receipts), len(chunks), refusal)
    if refusal is not None:
        raise refusal
    return receipts


def _note_gradients(turn: Turn, accepted: int, chunks: int, refusal: APIStatusError | None) -> None:
    if accepted:
        turn.note_gradients(waiting=True)
    if refusal is None:
        return
    if accepted:
        refusal.add_note(f"{accepted} of {chunks} chunks of this batch were accepted; their gradients count.")
    if is_unread(refusal):
        turn.send_others_away(refusal)


async def _send(connection: Connection, chunk: PackedChunk, seq_id: int) -> UntypedAPIFuture:
    """In protobuf; to a server that never took any and trips over it, in JSON."""
    if connection.speaks_protobuf is None and (receipt := await _try_both(connection, chunk, seq_id)):
        return receipt
    if connection.speaks_protobuf is False:
        return await _submit_json(connection, chunk, seq_id)
    return await _submit_protobuf(connection, chunk, seq_id)


async def _try_both(connection: Connection, chunk: PackedChunk, seq_id: int) -> UntypedAPIFuture | None:
    """Send a request in the form that the server reads, and remember which; None: nothing was learned.

    Each form is sent once. A server that reads JSON alone may answer protobuf with a 500, which is
    otherwise taken for a hiccup and repeated for minutes.
    """
    try:
        receipt = await _submit_protobuf(connection, chunk, seq_id, persist=False)
    except APIConnectionError:
        return None
    except APIStatusError as error:
        refusal = error
    else:
        connection.speaks_protobuf = True
        return receipt
    if refusal.status_code not in _TRIPS_OVER_PROTOBUF:
        if is_transient(refusal):
            return None
        raise refusal
    try:
        try:
            receipt = await _submit_json(connection, chunk, seq_id, persist=False)
        except APIConnectionError:  # a server that trips may hang up as well
            receipt = await _submit_json(connection, chunk, seq_id, persist=False)
    except (APIConnectionError, APIStatusError) as error:
        if not is_transient(refusal):
            raise refusal from None
        if is_transient(error) or (isinstance(error, APIStatusError) and error.status_code == 415):
            return None
        raise
    connection.speaks_protobuf = False
    return receipt


async def _submit_protobuf(
    connection: Connection, chunk: PackedChunk, seq_id: int, *, persist: bool = True
) -> UntypedAPIFuture:
    headers = {"Content-Type": PROTOBUF_CONTENT_TYPE}
    content = chunk.numbered(seq_id)
    if connection.server_config.proto_compress_fwdbwd:
        # In a thread: a chunk of several MB would hold up everything else on the loop.
        smaller = await asyncio.to_thread(compressed, content)
        if smaller is not None:
            content, headers = smaller, {**headers, "Content-Encoding": "zstd"}
    return await connection.submit("forward_backward", content=content, headers=headers, persist=persist)


async def _submit_json(
    connection: Connection, chunk: PackedChunk, seq_id: int, *, persist: bool = True
) -> UntypedAPIFuture:
    path = "forward" if chunk.request.forward_only else "forward_backward"
    # The number is in use by now, so nothing may fail: all goes that protobuf took, infinities as well.
    body = json.dumps(forward_backward_to_json(replace(chunk.request, seq_id=seq_id)), default=float)
    headers = {"Content-Type": "application/json"}
    return await connection.submit(path, content=body.encode(), headers=headers, persist=persist)


async def collect(
    connection: Connection, receipts: Sequence[UntypedAPIFuture], name: str, clock: ProgressClock
) -> ForwardBackwardOutput:
    """Wait for all chunks, and combine them."""
    result_type = forward_backward_result(name)
    return combine_outputs([await connection.result(receipt, result_type, clock) for receipt in receipts])
