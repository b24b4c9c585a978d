"""Downloads: links that need no API key since they are signed, and folders as tar streams.

A link says what it opens and until when, and its signature holds for that alone. The secret is
made once per data folder, so links outlive a restart. Knows no HTTP.
"""

from __future__ import annotations

import hmac
import os
import secrets
import tarfile
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from tinkerlite_server.durable import flush
from tinkerlite_server.errors import ServerError

_SECRET_FILE, _SECRET_BYTES = "download_secret", 32
_CHUNK_BYTES = 2**20


class Links:
    """Signs what may be downloaded, and until when.

    Args:
        data_dir: keeps the secret, in a file that its owner alone can read.
        seconds: how long a link works.
    """

    def __init__(self, data_dir: Path, seconds: float, *, clock: Callable[[], float] = time.time) -> None:
        self._secret = _secret(data_dir / _SECRET_FILE)
        self._seconds = seconds
        self._clock = clock

    def sign(self, resource: str) -> tuple[int, str]:
        """When a link made now expires (seconds since 1970), and its signature."""
        expires = int(self._clock() + self._seconds)
        return expires, self._signature(resource, expires)

    def is_genuine(self, resource: str, expires: int, signature: str) -> bool:
        """Whether `sign` said this, however long ago."""
        # As bytes, since text that is compared in constant time must be ASCII, and this is anyone's.
        return hmac.compare_digest(
            self._signature(resource, expires).encode(), signature.encode("utf-8", "replace")
        )

    def has_expired(self, expires: int) -> bool:
        """Whether the time of a link is over."""
        return self._clock() >= expires

    def _signature(self, resource: str, expires: int) -> str:
        return hmac.new(self._secret, f"{expires} {resource}".encode("utf-8", "replace"), sha256).hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """A folder's files by relative path, with forward slashes, in order."""
    found = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): file for file in found}


def tar_size(files: dict[str, Path]) -> int:
    """The bytes of the archive that `tar_stream` makes of these files."""
    members = sum(len(_header(name, file)) + _padded(file.stat().st_size) for name, file in files.items())
    return members + _end_of_archive(members)


def tar_stream(files: dict[str, Path]) -> Iterator[bytes]:
    """The files as an uncompressed tar archive, a chunk at a time."""
    sent = 0
    for name, file in files.items():
        header = _header(name, file)
        yield header
        size = 0
        with file.open("rb") as handle:
            while chunk := handle.read(_CHUNK_BYTES):
                size += len(chunk)
                yield chunk
        yield bytes(_padded(size) - size)
        sent += len(header) + _padded(size)
    yield bytes(_end_of_archive(sent))


def _header(name: str, file: Path) -> bytes:
    """A member's header: only name, size and time, and nothing of the server's users and modes."""
    member = tarfile.TarInfo(name)
    status = file.stat()
    member.size, member.mtime = status.st_size, int(status.st_mtime)
    return member.tobuf(tarfile.PAX_FORMAT)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _end_of_archive(size: int) -> int:
    """Two empty blocks, then up to a whole record."""
    return 2 * tarfile.BLOCKSIZE + -(size + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE


def _secret(file: Path) -> bytes:
    if not file.exists():
        # Complete under another name first: a crash must not leave half a secret.
        fresh = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:  # noqa: PTH123
            handle.write(secrets.token_bytes(_SECRET_BYTES))
        flush(fresh)
        fresh.rename(file)
        flush(file.parent)
    secret = file.read_bytes()
    if len(secret) != _SECRET_BYTES:  # an empty key would open every checkpoint
        raise ServerError(f"{file} is damaged: it has {len(secret)} bytes, not {_SECRET_BYTES}; delete it")
    return secret
