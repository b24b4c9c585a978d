"""HTTP routes of the protocol, one module a section of docs/protocol.md."""

from fastapi import APIRouter

from tinkerlite_server.routes import (
    checkpoints,
    copies,
    custom_losses,
    downloads,
    futures,
    models,
    sampling,
    saving,
    session_futures,
    session_search,
    sessions,
    training,
    training_runs,
)

PREFIX = "/api/v1"

router = APIRouter(prefix=PREFIX)
# Routes are tried in turn, so the busiest come first.
for module in (
    futures,
    session_futures,
    sampling,
    training,
    saving,
    models,
    sessions,
    session_search,
    training_runs,
    checkpoints,
    copies,
    downloads,
    custom_losses,
):
    router.include_router(module.router)
