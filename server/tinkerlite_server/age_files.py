"""Files that only chosen people can read: encrypted in the format of the `age` tool.

Knows no checkpoints and no HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyrage

from tinkerlite_server.errors import BadRequest

SUFFIX = ".age"
"""What an encrypted file's name ends with."""
MOST_RECIPIENTS = 10

# The extension module says nothing of its types.
_pyrage: Any = pyrage


def check_recipients(recipients: Sequence[str], field: str) -> tuple[str, ...]:
    """Public keys that files can be encrypted for, without the space around them.

    Raises:
        BadRequest: there are none or too many, or one is no public key of age or SSH.
    """
    if not recipients:
        raise BadRequest(
            f"{field} is empty; name the public keys to encrypt for, or leave it out to save plain files"
        )
    if len(recipients) > MOST_RECIPIENTS:
        raise BadRequest(f"{field} has {len(recipients)} entries; at most {MOST_RECIPIENTS} are allowed")
    for index, text in enumerate(recipients):
        try:
            _recipient(text)
        except _pyrage.RecipientError as error:
            raise BadRequest(
                f"{field}[{index}] is {_shown(text)}, which is no public key of age: {error}. Give keys that "
                "begin with age1 (age-keygen prints them), or SSH public keys (ssh-ed25519 or ssh-rsa)"
            ) from error
    return tuple(text.strip() for text in recipients)


def encrypt_files(folder: Path, recipients: Sequence[str]) -> None:
    """Replace each file by one named with `.age` at the end, which any of the recipients can read."""
    keys = [_recipient(text) for text in recipients]
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        _pyrage.encrypt_file(str(file), str(file.with_name(file.name + SUFFIX)), keys)
        file.unlink()


def _recipient(text: str) -> Any:
    kind = _pyrage.ssh if text.strip().startswith("ssh-") else _pyrage.x25519
    return kind.Recipient.from_str(text.strip())


def _shown(text: str) -> str:
    """What was sent, unless that is a secret which somebody took for the public key."""
    if "SECRET" in text.upper() or "PRIVATE" in text.upper():
        return "a secret key"
    return repr(text[:80])
