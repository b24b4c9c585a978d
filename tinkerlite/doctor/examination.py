"""The order of the examination: each part where those before it leave something to examine."""

from __future__ import annotations

from collections.abc import Generator

from tinkerlite.config import ClientConfig
from tinkerlite.doctor import offer, sampling, scoring
from tinkerlite.doctor.findings import TROUBLE, Finding, attempt, in_words
from tinkerlite.doctor.reach import reach
from tinkerlite.doctor.training import training
from tinkerlite.errors import APIError, InvalidRequest
from tinkerlite.service_client import ServiceClient

RECONNECT_SECONDS = 10.0
"""A server that is lost, or refuses with 5xx, for longer than this has failed the check."""


def examine(
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    student: str | None = None,
    teacher: str | None = None,
    scorings: int = 8,
    timeout_seconds: float = 300.0,
) -> Generator[Finding]:
    """Findings as they are made, the reachable first. Exhaust it, or close it, to end the session.

    Args:
        base_url: as for `ServiceClient`.
        api_key: as for `ServiceClient`.
        student: the base model to examine; absent, the first that can be trained.
        teacher: the model that is to teach it; absent, the vocabulary is compared with all listed.
        scorings: how many identical scorings at once.
        timeout_seconds: for each check to get anywhere; the first may load weights.

    Raises:
        InvalidRequest: an argument is wrong, and nothing was examined.
        CapabilityError: `local://` without an installed server.
    """
    if scorings < 2:
        raise InvalidRequest(f"scorings is {scorings}; it takes 2 to differ")
    config = ClientConfig(
        stuck_timeout_seconds=timeout_seconds,
        active_timeout_seconds=timeout_seconds,
        reconnect_timeout_seconds=RECONNECT_SECONDS,
    )
    service = yield from reach(base_url, api_key, config)
    if service is None:
        return
    with service:
        yield from _examine(service, student, teacher, scorings)


def _examine(
    service: ServiceClient, student: str | None, teacher: str | None, scorings: int
) -> Generator[Finding]:
    connection = service.connection
    try:
        offered = offer.look_up(connection)
    except APIError as error:
        offered = offer.Offer([])
        yield Finding(
            check="models", outcome="warn", says=f"the server does not list its models: {error.message}"
        )
    student = student or offered.default_student()
    if student is None:
        advice = "name a model with --student"
        yield Finding(check="models", outcome="fail", says="there is no model to examine", advice=advice)
        return
    if offered.models:
        yield offer.describe(offered, student, teacher)
    if teacher is None:
        yield offer.group_vocabularies(offered, student)
    else:
        pair = (connection, offered, student, teacher)
        yield attempt("vocabulary", lambda: offer.compare_vocabularies(*pair))
    yield from _examine_model(service, offered, student, scorings)


def _examine_model(
    service: ServiceClient, offered: offer.Offer, student: str, scorings: int
) -> Generator[Finding]:
    model = offered.model(student)
    dtype = model.dtype
    try:
        yield sampling.dialect(service.connection, service.create_sampling_client(base_model=student))
        sampler = service.create_sampling_client(base_model=student)
        text = sampling.own_text(sampler)
    except TROUBLE as error:
        yield Finding(
            check="sampling",
            outcome="fail",
            says=f"{student} cannot be sampled from: {in_words(error)}",
            advice="nothing that needs a sampler was examined; the server's log may say more",
        )
        return
    yield attempt("seed", lambda: sampling.seeds(sampler, text))
    yield attempt("sampled logprobs", lambda: sampling.temperature(sampler, text, dtype))
    scores = attempt("prompt logprobs", lambda: scoring.prompt_logprobs(sampler, text))
    yield scores
    if scores.outcome == "pass":
        yield attempt("top-k", lambda: scoring.topk(sampler, text, model.max_topk))
        yield attempt("concurrent scorings", lambda: scoring.agreement(sampler, text, scorings, dtype))
    if model.trainable is False:
        says = f"the server does not train {student}"
        yield Finding(check="sampler and trainer", outcome="skip", says=says)
    elif scores.outcome != "pass":
        says = "without prompt logprobs there is nothing to compare with the trainer's"
        yield Finding(check="sampler and trainer", outcome="skip", says=says)
    else:
        yield from training(service, sampler, student, text, dtype)
