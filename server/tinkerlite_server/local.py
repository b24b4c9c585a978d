"""LocalServer: the whole server in the caller's process, without a port.

What `local://MODEL` names in a client, which runs it over an in-process transport in its own
event loop. Its data lives in a temporary folder unless TINKERLITE_DATA_DIR names one that stays.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tinkerlite_server.app import create_app
from tinkerlite_server.engine.catalog import build_catalog
from tinkerlite_server.engine.cuda_settings import sized_for_device
from tinkerlite_server.engine.local_engine import LocalEngine
from tinkerlite_server.engine.protocols import EngineLimits
from tinkerlite_server.settings import Settings


class LocalServer:
    """A server around a `LocalEngine`.

    Args:
        models: hub ids or folders of the base models on offer.
        data_dir: where checkpoints go. None: `TINKERLITE_DATA_DIR` if set, else a folder that is
            deleted at `shutdown`.
        engine_limits: sizes, device and dtype.

    Raises:
        UnknownName: a model cannot be found.
    """

    def __init__(
        self,
        models: Sequence[str],
        *,
        data_dir: Path | None = None,
        engine_limits: EngineLimits | None = None,
    ) -> None:
        limits = engine_limits or sized_for_device(EngineLimits())
        engine = LocalEngine(build_catalog(models, limits), limits)
        self._scratch = None
        if data_dir is None and os.environ.get("TINKERLITE_DATA_DIR"):
            data_dir = Path(os.environ["TINKERLITE_DATA_DIR"])
        if data_dir is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="tinkerlite-", ignore_cleanup_errors=True)
            data_dir = Path(self._scratch.name)
        self.app = create_app(Settings(data_dir=data_dir), engine)
        """The ASGI application; serve it between `startup` and `shutdown`."""

    async def startup(self) -> None:
        """Begin to serve, on the running event loop."""
        await self.app.state.service.startup()

    async def shutdown(self) -> None:
        """Stop, and delete the temporary folder."""
        await self.app.state.service.shutdown()
        if self._scratch is not None:
            self._scratch.cleanup()
