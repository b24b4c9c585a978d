"""Adapters: which sampler weights are in memory, those of full runs included.

A snapshot of a run is in memory only; a run keeps a few, and the least recently used goes for
good, since a loop that takes one a step would otherwise fill any machine. Saved weights are
read when they are first sampled from, and again when they come back after having made room.
Where the engine has no room for weights, those that it could free go first.

Used by the engine's thread alone. Knows neither queues nor HTTP.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tinkerlite_server.engine.protocols import Engine
from tinkerlite_server.errors import NoRoom, UnknownName

T = TypeVar("T")


class Adapters:
    """The sampler's memory of adapters, bounded.

    Args:
        is_used: whether queued or running samples need an adapter; such a one is never dropped.
        snapshots_per_run: unnamed snapshots a run keeps.
        loaded: saved adapters kept, over all runs.
        let_go: told of each snapshot that had to go for others, whatever becomes of those.
    """

    def __init__(
        self,
        engine: Engine,
        is_used: Callable[[str], bool],
        let_go: Callable[[str], None],
        *,
        snapshots_per_run: int,
        loaded: int,
    ) -> None:
        self._engine = engine
        self._is_used = is_used
        self._let_go = let_go
        self._snapshots_per_run = snapshots_per_run
        self._most_loaded = loaded
        self._snapshots: dict[str, OrderedDict[str, None]] = {}  # of each run, least recently used first
        self._loaded: OrderedDict[str, None] = OrderedDict()

    def snapshot(self, model_id: str, adapter_id: str) -> None:
        """Copy a run's weights for the sampler.

        Raises:
            NoRoom: there is no room for them, nor anything that could make some.
        """
        kept = self._snapshots.setdefault(model_id, OrderedDict())
        self._with_room(lambda: self._engine.snapshot(model_id, adapter_id), kept)
        kept[adapter_id] = None
        for dropped in self._drop_oldest(kept, self._snapshots_per_run):
            self._let_go(dropped)

    def prepare(self, adapter_id: str, base_model: str, folder: Path | None) -> None:
        """Have an adapter ready to sample from.

        Raises:
            UnknownName: it was a snapshot, and is gone.
            NoRoom: there is no room for it, nor anything that could make some.
        """
        for kept in self._snapshots.values():
            if adapter_id in kept:
                kept.move_to_end(adapter_id)
        if adapter_id in self._loaded:
            self._loaded.move_to_end(adapter_id)
        if self._engine.has_adapter(adapter_id):
            return
        if folder is None:
            raise UnknownName(f"the weights of sampling session {adapter_id!r} were let go")
        self._with_room(lambda: self._engine.load_adapter(adapter_id, base_model, folder), OrderedDict())
        self._loaded[adapter_id] = None
        self._drop_oldest(self._loaded, self._most_loaded)

    def drop_snapshot(self, adapter_id: str) -> None:
        """Let go of a snapshot whose session ended."""
        for kept in self._snapshots.values():
            kept.pop(adapter_id, None)
        self._snapshots = {model_id: kept for model_id, kept in self._snapshots.items() if kept}
        self._engine.drop_adapter(adapter_id)

    def make_room(self, bring: Callable[[], T]) -> T:
        """Bring a run into memory, for which saved weights that nothing uses may have to go.

        Raises:
            NoRoom: there is no room for it, nor anything that could make some.
        """
        return self._with_room(bring, OrderedDict())

    def _with_room(self, bring: Callable[[], T], own: OrderedDict[str, None]) -> T:
        """Bring weights into memory, for which those of `own`, snapshots of their run, may have to go.

        Saved weights go before them, as those can be read again. Other runs' snapshots stay.
        """
        while True:
            try:
                return bring()
            except NoRoom as error:
                spare = (id_ for id_ in (*self._loaded, *own) if id_ in error.freeable)
                adapter_id = next((id_ for id_ in spare if not self._is_used(id_)), None)
                if adapter_id is None:
                    raise
            self._engine.drop_adapter(adapter_id)
            self._loaded.pop(adapter_id, None)
            if adapter_id in own:
                del own[adapter_id]
                self._let_go(adapter_id)

    def _drop_oldest(self, kept: OrderedDict[str, None], most: int) -> list[str]:
        newest = next(reversed(kept))
        dropped: list[str] = []
        for adapter_id in list(kept):
            if len(kept) <= most:
                break
            if adapter_id != newest and not self._is_used(adapter_id):
                del kept[adapter_id]
                self._engine.drop_adapter(adapter_id)
                dropped.append(adapter_id)
        return dropped
