"""Request bodies as bytes: whole, of bounded size, and unpacked where they were compressed.

What a body says about its own size is not believed: it is unpacked a piece at a time, and
refused the moment that it grows too large.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import zstandard
from fastapi import HTTPException, Request

from tinkerlite_server.errors import BadRequest

_PIECE_BYTES = 1024
"""Compressed bytes unpacked at once. Four of them can stand for 128 KiB, so this bounds a step to 32 MiB."""

_MOST_FRAMES = 1000
"""Each costs a new decompressor, and can be as small as 9 bytes."""

_LARGEST_WINDOW = 2**26
"""Bytes that a frame may make the decompressor keep."""


async def read_body(request: Request, most_bytes: int | None = None) -> bytes:
    """The body, without its Content-Encoding.

    Args:
        most_bytes: what it may have, packed or not; None: as much as any body.

    Raises:
        BadRequest: it is not what its encoding says.
        HTTPException: 413, it is too large; 415, it is encoded in another way than zstd.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "zstd"):
        raise HTTPException(
            415, f"the body is encoded as {encoding!r}; send it as it is, or compressed with zstd"
        )
    body = await request.body()
    most = most_bytes or request.app.state.service.settings.limits.max_body_bytes
    if encoding == "identity":
        if len(body) > most:
            raise HTTPException(413, f"the body is larger than the {most} bytes that it may have")
        return body
    return await asyncio.to_thread(_unpack, body, most)


def _unpack(body: bytes, most: int) -> bytes:
    unpacked = bytearray()
    try:
        for piece in _pieces(body):
            unpacked += piece
            if len(unpacked) > most:
                raise HTTPException(
                    413,
                    f"the body is larger than {most} bytes once it is unpacked; send less at once "
                    "(forward_backward requests add up)",
                )
    except zstandard.ZstdError as error:
        raise BadRequest(f"the body is not zstd, as its Content-Encoding says: {error}") from error
    return bytes(unpacked)


def _pieces(body: bytes) -> Iterator[bytes]:
    """What the frames of a body hold, one after another."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    frame, frames = decompressor.decompressobj(), 1
    rest = memoryview(body)
    while rest:
        if frame.eof:
            frame, frames = decompressor.decompressobj(), frames + 1
            if frames > _MOST_FRAMES:
                raise BadRequest(f"the body has more than {_MOST_FRAMES} zstd frames; send it as one")
        piece, rest = rest[:_PIECE_BYTES], rest[_PIECE_BYTES:]
        yield frame.decompress(piece)
        if frame.unused_data:  # the frame ended within this piece
            start = len(body) - len(rest) - len(frame.unused_data)
            rest = memoryview(body)[start:]
    if not frame.eof:
        raise BadRequest("the body is zstd that ends in the middle of a frame")
