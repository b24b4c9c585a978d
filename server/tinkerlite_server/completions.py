"""CompletionLog: which requests of a group are settled, so that one poll can wait for all of them.

A group is whatever polls together, such as the samples of one client of a sampling session. An
entry stays until a poll says that it was seen (by a later cursor), or until its result has been
fetched, which tells the same. Cursors rise over all groups, and over restarts: they begin at the
time.

Pure data structure; its user locks around it. Knows nothing of results.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import takewhile

from tinkerlite_server.errors import Gone


@dataclass(frozen=True)
class Completion:
    """A settled request, and where it stands in the log."""

    cursor: int
    request_id: str
    failed: bool
    size_bytes: int


class CompletionLog:
    """The settled requests of every group, in order."""

    def __init__(self) -> None:
        self._begin = self._last = time.time_ns() // 1000
        self._groups: dict[Hashable, dict[str, Completion]] = {}

    def add(self, group: Hashable, request_id: str, *, failed: bool, size_bytes: int) -> None:
        """A request of a group is settled."""
        self._last += 1
        entry = Completion(self._last, request_id, failed, size_bytes)
        self._groups.setdefault(group, {})[request_id] = entry

    def drop(self, group: Hashable, request_id: str) -> None:
        """Nobody needs to be told of a request any more."""
        entries = self._groups.get(group, {})
        entries.pop(request_id, None)
        if not entries:
            self._groups.pop(group, None)

    def after(self, group: Hashable, cursor: int) -> list[Completion]:
        """What was settled after a cursor; what was settled up to it has been seen, and is dropped.

        Raises:
            Gone: the cursor is of an earlier process, and so are the requests that are waited for.
        """
        if cursor > 0 and not self._begin <= cursor <= self._last:  # above, if the clock was set back since
            raise Gone("the server was restarted, and what was under way before is lost; sample again")
        entries = self._groups.get(group, {})
        seen = list(takewhile(lambda entry: entry.cursor <= cursor, entries.values()))
        for entry in seen:
            self.drop(group, entry.request_id)
        return list(entries.values())
