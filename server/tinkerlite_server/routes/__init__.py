"""HTTP routes of the protocol, one module a section of docs/protocol.md."""

from fastapi import APIRouter

from tinkerlite_server.routes import checkpoints, futures, models, sampling, saving, sessions, training

PREFIX = "/api/v1"

router = APIRouter(prefix=PREFIX)
# Routes are tried in turn, so the busiest come first.
for module in (futures, sampling, training, saving, models, sessions, checkpoints):
    router.include_router(module.router)
