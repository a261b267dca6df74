"""Signatures of models: who registered which files, under which name, from which run.

Ed25519 (RFC 8032) over the sha256 of the model's index, which has those of all its files.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray_jobs.errors import JobFailed, PreflightError
from ray_jobs.models.bundle_files import INDEX

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE_TAG, DIGEST_TAG = "emberline.signature", "emberline.index_digest"
KEY_VARIABLE, TRUST_VARIABLE = "EMBERLINE_SIGNING_KEY", "EMBERLINE_TRUSTED_KEYS"
_SCHEME = "ed25519"
_CONTEXT = b"emberline model 1\n"  # so that a signature of something else is none of a model
_TRUSTED_SUFFIXES = (".pem", ".pub")


@dataclass(frozen=True)
class Statement:
    """What is signed."""

    model: str  # the registered name
    run_id: str
    index_digest: str  # sha256 of bundle.json

    def to_bytes(self) -> bytes:
        return _CONTEXT + json.dumps(asdict(self), sort_keys=True).encode()


def index_digest(folder: Path) -> str:
    """sha256 of a bundle's index."""
    return hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()


def sign(statement: Statement) -> str:
    """`ed25519:<key>:<base64>`, with the key of EMBERLINE_SIGNING_KEY or, made at its first use,
    the user's own.

    Raises:
        PreflightError: the key cannot be read or made, or is not one of Ed25519.
    """
    key = _signing_key()
    signature = base64.b64encode(key.sign(statement.to_bytes())).decode()
    return f"{_SCHEME}:{_fingerprint(key.public_key())}:{signature}"


def verify(statement: Statement, signature: str) -> None:
    """Check a signature against the trusted keys: those in the folder EMBERLINE_TRUSTED_KEYS, or
    the one that `sign` would use.

    Raises:
        JobFailed: it is no signature, by no trusted key, or of something else.
        PreflightError: a key cannot be read, or there is none.
    """
    from cryptography.exceptions import InvalidSignature

    scheme, _, rest = signature.partition(":")
    fingerprint, _, encoded = rest.partition(":")
    try:
        content = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        content = b""
    if scheme != _SCHEME or not content:
        raise JobFailed(f"the tag {SIGNATURE_TAG} is no {_SCHEME} signature; register it again")
    key = _trusted_keys().get(fingerprint)
    if key is None:
        raise JobFailed(
            f"it is signed by the key {fingerprint}, which is not trusted; put that public key "
            f"(PEM) into the folder that {TRUST_VARIABLE} names"
        )
    try:
        key.verify(content, statement.to_bytes())
    except InvalidSignature:
        raise JobFailed(
            f"its signature is not of these files, this name and this run (index sha256 "
            f"{statement.index_digest[:12]}); train and register it again"
        ) from None


def _signing_key() -> Ed25519PrivateKey:
    given = os.environ.get(KEY_VARIABLE)
    if given:
        return _read_private(Path(given).expanduser())
    path = _own_key()
    if not path.exists():
        _make_key(path)
    return _read_private(path)


def _own_key() -> Path:
    """XDG Base Directory Specification 0.8: $XDG_CONFIG_HOME, by default ~/.config."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "emberline" / "signing.pem"


def _make_key(path: Path) -> None:
    """Write a new key, and its public half beside it; of several at once the first one stays."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            draft = Path(scratch) / path.name
            draft.touch(mode=0o600)
            draft.write_bytes(secret)
            os.link(draft, path)
    except FileExistsError:
        return
    except OSError as error:
        raise PreflightError(
            f"no signing key can be made at {path} ({error.strerror}); set {KEY_VARIABLE} to an "
            "Ed25519 private key (PEM), as `openssl genpkey -algorithm ed25519` makes it"
        ) from None
    path.with_suffix(".pub").write_bytes(_public_pem(key.public_key()))


def _read_private(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise PreflightError(
            f"the signing key {path} cannot be read ({error.strerror}); set {KEY_VARIABLE} to an "
            "Ed25519 private key (PEM)"
        ) from None
    except (ValueError, TypeError):  # not PEM; protected by a password
        raise _not_a_key(path, "private") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_a_key(path, "private")
    return key


def _trusted_keys() -> dict[str, Ed25519PublicKey]:
    folder = os.environ.get(TRUST_VARIABLE)
    if folder:
        paths = sorted(Path(folder).expanduser().glob("*"))
        keys = [_read_public(path) for path in paths if path.suffix in _TRUSTED_SUFFIXES]
        if not keys:
            raise PreflightError(
                f"{TRUST_VARIABLE}={folder} holds no public key; put PEM files "
                f"(*{', *'.join(_TRUSTED_SUFFIXES)}) there"
            )
    else:
        if not os.environ.get(KEY_VARIABLE) and not _own_key().exists():
            raise PreflightError(
                f"there is no key to trust; set {TRUST_VARIABLE} to a folder of public keys (PEM)"
            )
        keys = [_signing_key().public_key()]
    return {_fingerprint(key): key for key in keys}


def _read_public(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise PreflightError(f"the key {path} cannot be read ({error.strerror})") from None
    except ValueError:
        raise _not_a_key(path, "public") from None
    if not isinstance(key, Ed25519PublicKey):
        raise _not_a_key(path, "public")
    return key


def _not_a_key(path: Path, half: str) -> PreflightError:
    return PreflightError(
        f"{path} is not an Ed25519 {half} key in PEM without a password; make one with "
        "`openssl genpkey -algorithm ed25519` and `openssl pkey -pubout`"
    )


def _public_pem(key: Ed25519PublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _fingerprint(key: Ed25519PublicKey) -> str:
    """The first 16 digits of the sha256 of the public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]
