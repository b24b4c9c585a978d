"""External weights for chosen readers alone: encrypted before they are kept, in the format of `age`."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pyrage
import pytest

from tests.server.served import Caller
from tests.server.test_downloads import archive, export, fetch, links

AGE: Any = pyrage  # the extension module says nothing of its types
FIELD = "age_encryption_recipients"


def key_pair() -> tuple[Any, str]:
    """An identity, and the public key by which it is known."""
    identity = AGE.x25519.Identity.generate()
    return identity, str(identity.to_public())


def fetched(caller: Caller, model: str, name: str) -> dict[str, bytes]:
    return {file: fetch(caller, url).content for file, url in links(caller, model, name)["urls"].items()}


def decrypted(files: dict[str, bytes], identity: Any) -> dict[str, bytes]:
    return {name.removesuffix(".age"): AGE.decrypt(content, [identity]) for name, content in files.items()}


def plain_and_sealed(caller: Caller, recipients: list[str]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of one run, exported twice."""
    model = caller.model()
    export(caller, model, 1, "plain")
    export(caller, model, 2, "sealed", age_encryption_recipients=recipients)
    plain, sealed = fetched(caller, model, "plain"), fetched(caller, model, "sealed")
    # The README has the checkpoint's name in it.
    plain["README.md"] = plain["README.md"].replace(b"/plain", b"/sealed")
    return plain, sealed


def test_every_recipient_reads_the_very_bytes_of_a_plain_export(caller: Caller):
    pairs = [key_pair() for _ in range(10)]
    plain, sealed = plain_and_sealed(caller, [public for _, public in pairs])
    assert set(sealed) == {f"{name}.age" for name in plain}
    for identity, _ in pairs:
        assert decrypted(sealed, identity) == plain


def test_nobody_else_reads_them(caller: Caller):
    _, sealed = plain_and_sealed(caller, [key_pair()[1]])
    stranger, _ = key_pair()
    for content in sealed.values():
        assert content.startswith(b"age-encryption.org/v1\n")
        with pytest.raises(AGE.DecryptError):
            AGE.decrypt(content, [stranger])


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_ssh_keys_are_recipients_as_their_files_have_them(caller: Caller, tmp_path: Path, kind: str):
    private = tmp_path / "id"
    make = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "somebody@somewhere", "-f", str(private)]
    subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
    public = private.with_suffix(".pub").read_text()
    assert public.endswith(" somebody@somewhere\n")
    both, native = key_pair(), AGE.ssh.Identity.from_buffer(private.read_bytes())
    plain, sealed = plain_and_sealed(caller, [public, both[1]])
    assert decrypted(sealed, native) == decrypted(sealed, both[0]) == plain


def test_what_is_kept_is_encrypted_and_its_size_is_said(caller: Caller, tmp_path: Path):
    model = caller.model()
    identity, public = key_pair()
    saved = export(caller, model, age_encryption_recipients=[public])
    [folder] = (tmp_path / "checkpoints").iterdir()
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(kept) == {"README.md.age", "adapter.npy.age", "state.json.age"}
    assert saved["size_bytes"] == sum(map(len, kept.values()))
    assert kept == fetched(caller, model, "final")
    tar = fetch(caller, archive(caller, model, "external_weights/final").headers["location"]).content
    with tarfile.open(fileobj=io.BytesIO(tar)) as packed:
        assert {member.name for member in packed} == set(kept)
    assert b"rank 4, alpha 32" in decrypted(kept, identity)["README.md"]


SECRET = str(AGE.x25519.Identity.generate())


@pytest.mark.parametrize(
    ("recipients", "message"),
    [
        ([], f"{FIELD} is empty"),
        ([key_pair()[1]] * 11, f"{FIELD} has 11 entries; at most 10"),
        ([key_pair()[1], "age1xyz"], f"{FIELD}[1] is 'age1xyz', which is no public key of age"),
        ([""], f"{FIELD}[0] is ''"),
        (["age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t"], f"{FIELD}[0]"),
        (["ssh-ed25519 AAAA"], f"{FIELD}[0] is 'ssh-ed25519 AAAA'"),
        (["ecdsa-sha2-nistp256 AAAA"], "ssh-ed25519 or ssh-rsa"),
        (["x" * 100_000], "'" + "x" * 80 + "', which"),
        ([SECRET], f"{FIELD}[0] is a secret key"),
        (["-----BEGIN OPENSSH PRIVATE KEY-----"], f"{FIELD}[0] is a secret key"),
        ([7], FIELD),
        ("age1xyz", FIELD),
    ],
)
def test_what_is_no_public_key_is_refused_by_place_and_uses_up_its_number(
    caller: Caller, recipients: object, message: str
):
    model = caller.model()
    said = caller.refused(
        "/save_weights_external", model_id=model, seq_id=1, path="final", age_encryption_recipients=recipients
    )
    assert message in said
    assert SECRET not in said
    assert export(caller, model, 2)["path"]
