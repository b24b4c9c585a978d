"""Compressed bodies: read when they are what they say, refused when they lie, grow or break off."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import zstandard

from tests.server.served import Caller, datum, serving
from tests.server.toy_engine import ToyEngine
from tinkerlite.types import ForwardBackwardRequest
from tinkerlite.wire import PROTOBUF_CONTENT_TYPE, encode_forward_backward_request
from tinkerlite_server.settings import Limits

LIMIT = 2**20


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """Of a server that reads bodies of up to a MiB."""
    with serving(ToyEngine(), tmp_path_factory.mktemp("data"), limits=Limits(max_body_bytes=LIMIT)) as served:
        yield served.caller()


def send(caller: Caller, content: bytes | AsyncIterator[bytes], encoding: str = "zstd") -> httpx.Response:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    return caller.request("POST", "/create_session", content=content, headers=headers)


def session_named(name: str) -> bytes:
    return json.dumps({"display_name": name}).encode()


def name_of(caller: Caller, response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return caller.get(f"/sessions/{response.json()['session_id']}").json()["display_name"]


def refusal(response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text
    assert int(response.headers["content-length"]) == len(response.content)
    return response.json()["detail"]


def test_a_compressed_forward_backward_is_the_same_request_as_a_plain_one(caller: Caller):
    model = caller.model()
    request = ForwardBackwardRequest(model_id=model, seq_id=1, data=[datum()], loss_fn="cross_entropy")
    plain = encode_forward_backward_request(request)
    answers = [
        caller.request(
            "POST",
            "/forward_backward",
            content=body,
            headers={"Content-Type": PROTOBUF_CONTENT_TYPE, **encoding},
        ).json()
        for body, encoding in (
            (zstandard.compress(plain), {"Content-Encoding": "zstd"}),
            (plain, {}),
            (plain, {"Content-Encoding": "identity"}),
        )
    ]
    assert answers[0] == answers[1] == answers[2]
    assert caller.gradients(answers[0]["request_id"]).metrics["loss:sum"] > 0


@pytest.mark.parametrize("encoding", ["zstd", "ZSTD", " zstd "])
def test_a_compressed_json_body_is_read(reader: Caller, encoding: str):
    response = send(reader, zstandard.compress(session_named("packed")), encoding)
    assert name_of(reader, response) == "packed"


def test_a_body_compressed_as_a_stream_needs_no_stated_size(reader: Caller):
    compressor = zstandard.ZstdCompressor().compressobj()
    body = compressor.compress(session_named("streamed")) + compressor.flush()
    assert zstandard.get_frame_parameters(body).content_size == zstandard.CONTENTSIZE_UNKNOWN
    assert name_of(reader, send(reader, body)) == "streamed"


def test_several_frames_are_one_body(reader: Caller):
    text = session_named("in pieces " + "x" * 5000)
    pieces = [zstandard.compress(text[start : start + 20]) for start in range(0, len(text), 20)]
    skipped = struct.pack("<II", 0x184D2A50, 3) + b"abc"
    assert name_of(reader, send(reader, skipped.join(pieces))).startswith("in pieces")


def test_a_compressed_body_may_come_in_chunks_without_a_length(reader: Caller):
    body = zstandard.compress(session_named("chunked"))

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 3):
            yield body[start : start + 3]

    assert name_of(reader, send(reader, chunks())) == "chunked"


def test_a_body_of_incompressible_text_survives_whatever_the_pieces_are(reader: Caller):
    """Longer than many pieces, so that frames and pieces end at different places."""
    name = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=200_000))
    assert name_of(reader, send(reader, zstandard.compress(session_named(name)))) == name


def test_what_unpacks_beyond_the_bound_is_refused_without_being_unpacked(reader: Caller):
    """A gigabyte of zeros is 32 KB of zstd."""
    bomb = zstandard.compress(bytes(2**30))
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        detail = refusal(send(reader, bomb), 413)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert f"larger than {LIMIT} bytes once it is unpacked" in detail
    assert peak < 100 * 2**20
    assert reader.session()


def test_a_bomb_of_many_frames_is_refused_too(reader: Caller):
    assert refusal(send(reader, zstandard.compress(bytes(2**16)) * 20), 413)


def test_too_many_frames_are_refused_before_they_cost_anything(reader: Caller):
    assert "more than 1000 zstd frames" in refusal(send(reader, zstandard.compress(b"") * 1001))


def test_a_body_at_the_bound_is_read(reader: Caller):
    name = "x" * (LIMIT - len(session_named("")))
    assert name_of(reader, send(reader, zstandard.compress(session_named(name)))) == name
    assert refusal(send(reader, zstandard.compress(session_named(f"{name}x"))), 413)


@pytest.mark.parametrize("stated", [0, 1, 10**6, 2**62])
def test_a_frame_that_lies_about_its_size_is_refused(reader: Caller, stated: int):
    honest = zstandard.compress(session_named("liar " * 100))
    header = zstandard.frame_header_size(honest)
    # Magic number, then a descriptor that announces 8 bytes of content size and a window.
    lying = honest[:4] + bytes([0b11000000, 0x58]) + struct.pack("<Q", stated) + honest[header:]
    assert zstandard.get_frame_parameters(lying).content_size == stated
    assert "is not zstd" in refusal(send(reader, lying))


def test_a_frame_that_wants_too_much_memory_is_refused(reader: Caller):
    honest = zstandard.compress(session_named("greedy"))
    greedy = honest[:4] + bytes([0b00000000, 0xA8]) + honest[zstandard.frame_header_size(honest) :]
    assert zstandard.get_frame_parameters(greedy).window_size == 2**31
    assert "is not zstd" in refusal(send(reader, greedy))


@pytest.mark.parametrize("keep", [0, 1, 4, 5, 12, -1, -3])
def test_a_frame_that_breaks_off_is_refused(reader: Caller, keep: int):
    body = zstandard.compress(session_named("cut short " * 50))
    assert "in the middle of a frame" in refusal(send(reader, body[:keep]))


@pytest.mark.parametrize("garbage", [b"x", b"\x00", b"garbage that is longer than a header", b'{"a": 1}'])
def test_what_follows_a_frame_must_be_a_frame(reader: Caller, garbage: bytes):
    detail = refusal(send(reader, zstandard.compress(session_named("a")) + garbage))
    assert "zstd" in detail


@pytest.mark.parametrize("body", [b"not compressed at all", session_named("plain"), b"\x1f\x8b\x08\x00gzip"])
def test_a_body_that_is_no_zstd_is_refused(reader: Caller, body: bytes):
    assert "is not zstd, as its Content-Encoding says" in refusal(send(reader, body))


def test_a_checksum_that_does_not_fit_is_refused(reader: Caller):
    body = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(session_named("sum")))
    body[-1] ^= 1
    assert "is not zstd" in refusal(send(reader, bytes(body)))


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd, zstd", "zstd, gzip", "x"])
def test_other_encodings_are_refused_by_name(reader: Caller, encoding: str):
    assert repr(encoding) in refusal(send(reader, b"x", encoding), 415)


def test_what_is_inside_is_checked_like_a_plain_body(reader: Caller):
    assert "not JSON" in refusal(send(reader, zstandard.compress(b"{")))
    headers = {"Content-Type": PROTOBUF_CONTENT_TYPE, "Content-Encoding": "zstd"}
    response = reader.request(
        "POST", "/forward_backward", content=zstandard.compress(b"\xff\xff"), headers=headers
    )
    assert "not a ForwardBackwardRequest" in refusal(response)


def test_a_protobuf_body_that_breaks_off_is_refused_wherever_it_breaks(caller: Caller):
    """Some cuts leave a shorter message that is whole; what it then lacks is named."""
    model = caller.model()
    request = ForwardBackwardRequest(model_id=model, seq_id=1, data=[datum()], loss_fn="cross_entropy")
    whole = encode_forward_backward_request(request)
    headers = {"Content-Type": PROTOBUF_CONTENT_TYPE}
    for length in range(len(whole)):
        response = caller.request("POST", "/forward_backward", content=whole[:length], headers=headers)
        assert response.status_code in (400, 404), length
        assert response.json()["detail"]


@pytest.mark.parametrize("kind", ["", "text/plain", "application/octet-stream", "multipart/form-data"])
def test_a_batch_sent_as_another_type_is_refused(reader: Caller, kind: str):
    response = reader.request("POST", "/forward_backward", content=b"x", headers={"Content-Type": kind})
    assert PROTOBUF_CONTENT_TYPE in refusal(response, 415)


def test_the_bound_counts_what_arrives_as_well(tmp_path: Path):
    with serving(ToyEngine(), tmp_path, limits=Limits(max_body_bytes=1000)) as served:
        noise = zstandard.compress(random.Random(0).randbytes(2000))
        assert "larger than 1000 bytes" in refusal(send(served.caller(), noise), 413)
