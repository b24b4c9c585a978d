"""CustomLosses: the losses that sessions uploaded, each kept for as long as its session lives.

Knows neither what a loss computes nor how it came here.
"""

from __future__ import annotations

import threading

from tinkerlite_server.engine.protocols import LossProgram
from tinkerlite_server.errors import BadRequest, UnknownName


class CustomLosses:
    """Checked losses by session and id. Any thread may call.

    Args:
        most: losses that a session may have.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._by_session: dict[str, dict[str, LossProgram]] = {}

    def add(self, session_id: str, program: LossProgram) -> None:
        """Keep a loss.

        Raises:
            BadRequest: its id is taken, or the session has too many.
        """
        loss_id = program.graph.loss_id
        with self._lock:
            losses = self._by_session.setdefault(session_id, {})
            if loss_id in losses:
                raise BadRequest(f"custom loss {loss_id!r} exists already; count custom_loss_seq_id up")
            if len(losses) >= self._most:
                raise BadRequest(
                    f"session {session_id!r} has {len(losses)} custom losses, and this server keeps no more "
                    "of one session; create each once and use it again"
                )
            losses[loss_id] = program

    def get(self, session_id: str, loss_id: str) -> LossProgram:
        """A loss of a session.

        Raises:
            UnknownName: it has none of this id; another session's do not count.
        """
        with self._lock:
            losses = self._by_session.get(session_id, {})
            if loss_id not in losses:
                raise UnknownName(
                    f"session {session_id!r} has no custom loss {loss_id!r}; it has {sorted(losses)}"
                )
            return losses[loss_id]

    def drop_session(self, session_id: str) -> None:
        """Let go of the losses of a session that ended."""
        with self._lock:
            self._by_session.pop(session_id, None)
