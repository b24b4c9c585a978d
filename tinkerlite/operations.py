"""One training run's operations on their way: encoded when called, sent in the order of the calls, awaited.

Knows requests, chunks and passes. What an operation is for, its caller says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from tinkerlite import batches, custom_loss
from tinkerlite.connection import Connection
from tinkerlite.errors import APIStatusError, InvalidRequest
from tinkerlite.future import APIFuture
from tinkerlite.losses import check_data, check_is_data
from tinkerlite.ordering import Turn, Turns, is_unread
from tinkerlite.polling import ResultType
from tinkerlite.progress import ProgressClock
from tinkerlite.types import Datum, ForwardBackwardOutput, LossFnOutput

T = TypeVar("T")

_USE_UP_GRADIENTS = ("optim_step", "load_weights")

CustomLoss = custom_loss.CustomLossFn | custom_loss.NumpyLoss


class Operations:
    """The operations of one run. May be started from several threads."""

    def __init__(self, connection: Connection, model_id: str) -> None:
        self._connection = connection
        self._model_id = model_id
        self._turns = Turns(connection, model_id)
        self._clock = ProgressClock()

    def start(self, path: str, body: dict[str, Any], result_type: ResultType[T]) -> APIFuture[T]:
        """One request, whose body lacks only the run and the number.

        Raises:
            InvalidRequest: at once; JSON has no way to say what the body holds. Nothing was sent.
        """
        connection = self._connection
        try:
            body = json.loads(json.dumps(body, allow_nan=False, ensure_ascii=False).encode())
        except (TypeError, ValueError) as error:
            raise InvalidRequest(
                f"{result_type.name}: {error}; send plain numbers, texts and lists"
            ) from error

        async def operation(turn: Turn) -> T:
            async with turn:
                try:
                    receipt = await turn.send(
                        lambda seq_id: connection.submit(
                            path, json={"model_id": self._model_id, "seq_id": seq_id, **body}
                        )
                    )
                except APIStatusError as error:
                    if is_unread(error) and path in _USE_UP_GRADIENTS:
                        turn.send_others_away(error)
                    raise
                if path in _USE_UP_GRADIENTS:
                    turn.note_gradients(waiting=False)
            return await connection.result(receipt, result_type, self._clock)

        return self._turns.start(operation, result_type.name)

    def start_batch(
        self,
        name: str,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, float | str] | None,
        *,
        forward_only: bool,
    ) -> APIFuture[ForwardBackwardOutput]:
        """A batch through a loss of the server's, in as many requests as it takes.

        Raises:
            InvalidRequest, InvalidDatum: at once; nothing was sent.
        """
        check_data(data, loss_fn, loss_fn_config)
        chunks = self._pack(data, loss_fn, loss_fn_config, forward_only=forward_only)

        async def operation(turn: Turn) -> ForwardBackwardOutput:
            async with turn:
                receipts = await batches.send_batch(self._connection, turn, chunks)
            return await batches.collect(self._connection, receipts, name, self._clock)

        return self._turns.start(operation, f"{name} of {len(data)} datums")

    def start_custom(
        self, name: str, data: Sequence[Datum], loss_fn: CustomLoss
    ) -> APIFuture[ForwardBackwardOutput]:
        """A batch through a loss of the caller's, in two passes; the turn ends when the second is sent.

        Raises:
            InvalidRequest, InvalidDatum: at once; nothing was sent.
        """
        check_is_data(data)
        given = batches.snapshot(data)
        first_pass = custom_loss.forward_data(given)
        check_data(first_pass, "cross_entropy")
        first = self._pack(first_pass, "cross_entropy", forward_only=True)

        async def operation(turn: Turn) -> ForwardBackwardOutput:
            async with turn:
                try:
                    receipts = await batches.send_batch(self._connection, turn, first)
                    output = await batches.collect(self._connection, receipts, name, self._clock)
                    linear, second = await asyncio.to_thread(
                        self._second_pass, given, output.loss_fn_outputs, loss_fn
                    )
                except BaseException as error:
                    turn.send_others_away(error)
                    raise
                receipts = await batches.send_batch(self._connection, turn, second)
            return linear.add_to(await batches.collect(self._connection, receipts, name, self._clock))

        return self._turns.start(operation, f"{name} of {len(given)} datums")

    def _second_pass(
        self, data: list[Datum], outputs: Sequence[LossFnOutput], loss_fn: CustomLoss
    ) -> tuple[custom_loss.LinearisedLoss, list[batches.PackedChunk]]:
        linear = custom_loss.linearise(data, outputs, loss_fn)
        return linear, self._pack(linear.data, "cross_entropy", forward_only=False)

    def _pack(
        self,
        data: Sequence[Datum],
        loss_fn: str,
        loss_fn_config: Mapping[str, float | str] | None = None,
        *,
        forward_only: bool,
    ) -> list[batches.PackedChunk]:
        return batches.pack(
            self._connection, self._model_id, data, loss_fn, loss_fn_config, forward_only=forward_only
        )
