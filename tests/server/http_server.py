"""A server on a port of this process, for tests that want real HTTP and settings the command lacks."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI


@contextmanager
def http_server(app: FastAPI) -> Iterator[str]:
    """Serves `app` on a free loopback port; its URL."""
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started.set()

    server = Server(uvicorn.Config(app, log_level="warning", ws="none"))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http server")
        thread.start()
        try:
            assert started.wait(60)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            app.state.service.begin_shutdown()
            server.should_exit = True
            thread.join()
