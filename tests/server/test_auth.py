from __future__ import annotations

import pytest

from tinkerlite_server.auth import Keyring
from tinkerlite_server.errors import Forbidden
from tinkerlite_server.settings import is_loopback


def test_without_keys_everyone_is_let_in_as_the_owner_of_their_key():
    ring = Keyring([])
    assert ring.owner("tml-a") == ring.owner("tml-a")
    assert len({ring.owner("tml-a"), ring.owner("tml-b"), ring.owner(None)}) == 3


def test_with_keys_only_those_are_let_in():
    ring = Keyring(["tml-a", "tml-b"])
    assert ring.owner("tml-a") != ring.owner("tml-b")
    with pytest.raises(Forbidden, match="is not known"):
        ring.owner("tml-c")
    with pytest.raises(Forbidden, match="is missing"):
        ring.owner(None)


def test_no_key_is_kept():
    assert "tml-secret" not in repr(vars(Keyring(["tml-secret"])))


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback_is_what_only_this_machine_can_reach(host: str, local: bool):
    assert is_loopback(host) is local
