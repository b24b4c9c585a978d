"""Submitting: what is sent again, what is not, and for how long."""

from __future__ import annotations

import asyncio
import dataclasses
import re

import httpx
import pytest

import tinkerlite
from tests.client.scripted_server import HASTY, Answer, ScriptedServer
from tinkerlite import errors
from tinkerlite.retry import backoff_seconds, resend
from tinkerlite.types import AdamParams

STEP = AdamParams(learning_rate=1e-4)


@pytest.mark.parametrize(
    "trouble", [Answer(408, {}), Answer(425, {}), Answer(429, {}), Answer(503, {}), Answer(drop=True)]
)
def test_a_refused_or_lost_submission_is_sent_again_under_the_same_number(
    server: ScriptedServer, training: tinkerlite.TrainingClient, trouble: Answer
):
    server.script("optim_step", trouble, trouble)
    training.optim_step(STEP).result()
    assert [request.json["seq_id"] for request in server.sent("optim_step")] == [1, 1, 1]


def test_the_waits_double_from_one_second_to_thirty():
    waits = [backoff_seconds(attempt, 1.0, None) for attempt in range(1, 8)]
    assert waits == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After-Ms": "250"}, 0.25),
        ({"Retry-After": "soon"}, 1.0),
        ({}, 1.0),
    ],
)
def test_the_servers_advice_goes_before_the_clients_own_wait(
    server: ScriptedServer, training: tinkerlite.TrainingClient, headers: dict[str, str], seconds: float
):
    server.script("optim_step", Answer(400, {"detail": "no"}, headers))
    with pytest.raises(errors.BadRequestError) as caught:
        training.optim_step(STEP).result()
    assert backoff_seconds(1, 1.0, caught.value) == seconds


def test_a_wait_that_would_pass_the_budget_is_an_error_at_once(server: ScriptedServer):
    with tinkerlite.ServiceClient(base_url=server.url, config=HASTY) as service:
        sampler = service.create_sampling_client(base_model="tiny")
        server.script("asample", Answer(429, {"detail": "64 samples queued"}, {"Retry-After": "3600"}))
        with pytest.raises(errors.RateLimitError, match="64 samples queued") as caught:
            sampler.compute_logprobs(tinkerlite.ModelInput.from_ints([1, 2])).result()
    assert caught.value.retry_after_seconds == 3600
    assert len(server.sent("asample")) == 1


def test_only_the_time_that_was_lost_counts_and_not_what_a_transfer_took():
    """A download of ten minutes that breaks off is begun again, though the budget is five."""
    there = httpx.Request("GET", "http://there")
    sent = 0

    async def break_off_twice() -> str:
        nonlocal sent
        sent += 1
        await asyncio.sleep(0.3)
        if sent < 3:
            raise errors.APIConnectionError(there, "the connection broke")
        return "whole"

    async def fetch(attempt_seconds: float) -> str:
        return await resend(
            break_off_twice, first_seconds=0.01, budget_seconds=0.2, attempt_seconds=attempt_seconds
        )

    assert asyncio.run(fetch(attempt_seconds=0.05)) == "whole"
    sent = 0
    with pytest.raises(errors.APIConnectionError, match="broke") as caught:
        asyncio.run(fetch(attempt_seconds=60.0))
    assert sent == 1
    assert re.search(r"Tried 1 times in \d\.\d s; .* gives up after 0\.2 s", caught.value.__notes__[-1])


def test_a_server_that_stays_away_is_an_error_when_the_budget_is_spent(server: ScriptedServer):
    config = dataclasses.replace(HASTY, reconnect_timeout_seconds=0.1)
    with tinkerlite.ServiceClient(base_url=server.url, config=config) as service:
        server.script("get_server_capabilities", *[Answer(503, {"detail": "maintenance"})] * 50)
        with pytest.raises(errors.InternalServerError, match="maintenance") as caught:
            service.get_server_capabilities()
    assert "gives up after 0.1 s" in caught.value.__notes__[-1]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequestError),
        (401, errors.AuthenticationError),
        (403, errors.PermissionDeniedError),
        (404, errors.NotFoundError),
        (409, errors.ConflictError),
        (422, errors.UnprocessableEntityError),
        (501, errors.InternalServerError),
    ],
)
def test_any_other_refusal_is_final_and_says_what_the_server_said(
    server: ScriptedServer,
    training: tinkerlite.TrainingClient,
    status: int,
    kind: type[errors.APIStatusError],
):
    server.script("optim_step", Answer(status, {"detail": "learning_rate is -1"}))
    with pytest.raises(kind, match="learning_rate is -1") as caught:
        training.optim_step(STEP).result()
    assert caught.value.status_code == status
    assert caught.value.url.endswith("/api/v1/optim_step")
    assert len(server.sent("optim_step")) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"detail": [{"loc": ["body", "rank"], "msg": "too large"}]}, "body.rank: too large"),
        ({"error": {"message": "quota"}}, "quota"),
        (b"<html>gateway</html>", "<html>gateway</html>"),
    ],
)
def test_the_servers_words_are_found_in_whatever_shape_they_come(
    server: ScriptedServer, training: tinkerlite.TrainingClient, body: object, said: str
):
    server.script("optim_step", Answer(400, body))
    with pytest.raises(errors.BadRequestError, match=said):
        training.optim_step(STEP).result()


@pytest.mark.parametrize("body", [b"", b"[1]", {"request_id": 7}, {"id": "x"}])
def test_an_answer_that_is_not_the_protocols_is_said_to_be_so(
    server: ScriptedServer, training: tinkerlite.TrainingClient, body: object
):
    server.script("optim_step", Answer(body=body))
    with pytest.raises(errors.APIResponseValidationError, match="optim_step"):
        training.optim_step(STEP).result()


def test_a_redirect_is_not_followed_since_a_moved_server_wants_another_base_url(server: ScriptedServer):
    server.script("client/config", Answer(301, {}, {"Location": "https://elsewhere.example/api"}))
    with pytest.raises(errors.APIStatusError, match=r"https://elsewhere\.example/api; use that as base_url"):
        tinkerlite.ServiceClient(base_url=server.url, config=HASTY)
