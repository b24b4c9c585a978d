"""The OpenAI-compatible surface: sampling for clients that speak that API. It has no sessions.

A base model or saved sampler weights are a `model`; requests go through the same checks, queues
and seeds as those of `asample`. Everything that OpenAI-style clients expect and the protocol does
not have is in here: text in and out, chat templates, streams of events, errors of their shape.
"""

from fastapi import APIRouter

from tinkerlite_server.routes.openai import chat, completions, models

PREFIX = "/oai/api/v1"

router = APIRouter(prefix=PREFIX)
for module in (chat, completions, models):
    router.include_router(module.router)
