"""What every route does: who asks, read the body, answer. HTTP and nothing else.

Bodies are read by hand rather than by FastAPI, since a refused request must still yield its
model id and number (see `numbered`), and since unknown fields are ignored on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, ValidationError

from tinkerlite.errors import InvalidRequest
from tinkerlite_server.errors import BadRequest, Forbidden, UnknownName
from tinkerlite_server.futures import fingerprint
from tinkerlite_server.operations import Refusal
from tinkerlite_server.routes.bodies import read_body
from tinkerlite_server.service import Service


class Body(BaseModel):
    """Base of the request bodies. Each release of a client may add fields, so others are ignored."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=(), allow_inf_nan=False)


B = TypeVar("B", bound=BaseModel)


# ---- who, and where ----


# Both are async although they await nothing: FastAPI sends sync ones to a thread, each time.
async def _service(request: Request) -> Service:
    return request.app.state.service


async def _owner(request: Request, service: Annotated[Service, Depends(_service)]) -> str:
    """The owner behind the request's key, from X-API-Key or Authorization: Bearer."""
    key = request.headers.get("x-api-key")
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if key is None and scheme.lower() == "bearer":
        key = token.strip()
    return service.keyring.owner(key)


Served = Annotated[Service, Depends(_service)]
Owner = Annotated[str, Depends(_owner)]


def reader(service: Service, owner: str, access_token: str | None) -> str:
    """As whom weights are read: a caller may show another owner's key for that alone.

    Raises:
        BadRequest: it is no key of this server. The caller's own key is, so that this is no 401: after
            one, clients take nothing of their request for read.
    """
    try:
        return service.keyring.owner(access_token) if access_token else owner
    except Forbidden as error:
        raise BadRequest(
            "weights_access_token is no API key of this server", field="weights_access_token"
        ) from error


MOST_NESTED = 64
"""Levels of arrays and objects in a JSON body."""

FARTHEST = 2**31
"""Largest `offset` of a listing."""

AccessScope = Literal["owned", "accessible"]
"""What a listing covers: the caller's own, or also what others made public."""


# ---- in ----


async def read_json(request: Request, most_bytes: int | None = None) -> dict[str, Any]:
    """The body as a JSON object; `most_bytes` as in `read_body`.

    Raises:
        BadRequest: it is none.
        HTTPException: 413, it is too large; 415, it is sent as something else.
    """
    kind = content_type(request)
    # Browsers send other types across origins without asking, so this also keeps web pages out.
    if kind != "application/json":
        raise HTTPException(415, f"the body is sent as {kind or 'no type'}; send application/json")
    content = await read_body(request, most_bytes)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequest(f"the body is a JSON {type(body).__name__}; send an object")
    _check_depth(body)
    # Half a character comes as an escape, as bytes that begin with ED, or in UTF-16, which has zeros.
    if any(sign in content for sign in (rb"\u", b"\xed", b"\0")):
        _check_text(body)
    return body


def content_type(request: Request) -> str:
    """The media type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def digest(body: dict[str, Any]) -> bytes:
    """By which the same body is recognised when it is sent again."""
    return fingerprint(json.dumps(body, sort_keys=True))


def _check_depth(body: Any) -> None:
    """What is read here is handed on to code that recurses, some of it from deep in the stack."""
    level = [body]
    for _ in range(MOST_NESTED):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for values in inner for each in values if isinstance(each, dict | list)]
        if not level:
            return
    raise BadRequest(f"the body is nested deeper than {MOST_NESTED} levels")


def _check_text(value: Any) -> None:
    """Refuse text that has half a character in it."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"the body has text that is not Unicode: {error.reason}") from error


def parse(kind: type[B], body: Any) -> B:
    """The body as one of its kinds.

    Raises:
        BadRequest: naming the first field that is wrong, its value, and what it must be.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the body"
        value = "" if first["type"] == "missing" else f" (it is {_short(first['input'])})"
        raise BadRequest(f"{field}: {first['msg']}{value}", field=field) from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def repeat_key(model_id: str, seq_id: int | None) -> tuple[str, int] | None:
    """What names an operation when it is sent again; unnumbered ones are never the same."""
    return (model_id, seq_id) if seq_id else None


@contextmanager
def numbered(
    service: Service, owner: str, verb: str, model_id: Any, seq_id: Any, *, loses_gradients: bool = False
) -> Iterator[None]:
    """Around what checks and accepts a numbered request: if it is refused, its number counts as used.

    The client goes on with the next number, so later operations would wait for this one for ever.

    Args:
        verb: what the request is called; messages then say which one of it was refused.
        model_id, seq_id: as they came, in whatever type.
        loses_gradients: whether the client may believe that it added gradients.
    """
    try:
        yield
    except (BadRequest, UnknownName, InvalidRequest) as error:
        which = verb
        if isinstance(model_id, str) and isinstance(seq_id, int) and seq_id > 0:
            which = f"{verb} {seq_id} of {model_id}"
            refusal = Refusal(
                model_id=model_id, seq_id=seq_id, reason=f"{error}", loses_gradients=loses_gradients
            )
            service.refuse(owner, refusal)
        kind = UnknownName if isinstance(error, UnknownName) else BadRequest
        raise kind(f"{which}: {error}") from error


# ---- out ----


def reply(content: BaseModel | dict[str, Any], status: int = 200, **headers: str) -> Response:
    """A JSON answer. It has a Content-Length, without which clients take a 400 for a proxy's."""
    data = content.model_dump(mode="json") if isinstance(content, BaseModel) else content
    return Response(
        json.dumps(data, allow_nan=False).encode(), status, headers, media_type="application/json"
    )


def promise(request_id: str, **fields: Any) -> Response:
    """The answer to accepted work."""
    return reply({"request_id": request_id, **fields})
