"""HTTP routes of the protocol, one module a section of docs/protocol.md."""

from fastapi import APIRouter

from tinkerlite_server.routes import checkpoints, futures, models, sampling, saving, sessions, training

PREFIX = "/api/v1"

router = APIRouter(prefix=PREFIX)
for module in (sessions, models, training, saving, sampling, futures, checkpoints):
    router.include_router(module.router)
