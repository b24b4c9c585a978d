"""Who is asking: API keys in, owners out. Knows nothing of HTTP.

An owner is the SHA-256 of a key. Sessions, runs, futures and checkpoints belong to one, and no
key itself is kept after start-up.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from tinkerlite_server.errors import Forbidden


class Keyring:
    """The keys that are let in; an empty ring lets everyone in, each as the owner of their key."""

    def __init__(self, api_keys: Sequence[str]) -> None:
        self._owners = [owner_of(key) for key in api_keys]

    def owner(self, api_key: str | None) -> str:
        """The owner behind a key, None standing for no key at all.

        Every known key is compared, in constant time, so that timing tells nothing.

        Raises:
            Forbidden: keys are configured, and this is none of them.
        """
        owner = owner_of(api_key or "")
        if not self._owners:
            return owner
        matches = [hmac.compare_digest(owner, known) for known in self._owners]
        if not any(matches):
            said = "is not known to this server" if api_key else "is missing"
            raise Forbidden(
                f"the API key {said}; send one it was started with, in the header X-API-Key "
                "(TINKERLITE_API_KEY or TINKER_API_KEY)"
            )
        return owner


def owner_of(api_key: str) -> str:
    """The owner that a key stands for."""
    return sha256(api_key.encode("utf-8", "surrogateescape")).hexdigest()
