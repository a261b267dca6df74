"""Signatures of models: with the user's own key, a given one, and a folder of trusted ones."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from ray_jobs.errors import JobFailed, PreflightError
from ray_jobs.tracking.signing import Statement, index_digest, sign, verify

STATEMENT = Statement("fire", "20261121-1", "ab" * 32)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without keys."""
    for name in ("EMBERLINE_SIGNING_KEY", "EMBERLINE_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "emberline"


def write_keys(folder: Path, name: str, key=None) -> tuple[Path, Path]:
    key = key or ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def test_the_users_own_key_is_made_once_and_is_theirs_alone(home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        signatures = list(pool.map(lambda _: sign(STATEMENT), range(8)))
    assert len(set(signatures)) == 1  # Ed25519 signs alike each time
    verify(STATEMENT, signatures[0])
    key = home / "signing.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(path.name for path in home.iterdir()) == ["signing.pem", "signing.pub"]


@pytest.mark.parametrize("field", ["model", "run_id", "index_digest"])
def test_a_signature_is_of_these_files_this_name_and_this_run(field: str) -> None:
    signature = sign(STATEMENT)
    with pytest.raises(JobFailed, match="its signature is not of these files, this name and this"):
        verify(replace(STATEMENT, **{field: "another"}), signature)


@pytest.mark.parametrize("altered", ["", "ed25519:ab", "ed25519:ab:%%", "rsa:{1}:{2}"])
def test_what_is_no_signature(altered: str) -> None:
    parts = sign(STATEMENT).split(":")
    with pytest.raises(JobFailed, match="is no ed25519 signature; register it again"):
        verify(STATEMENT, altered.format(*parts))


def test_only_trusted_keys_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    private, public = write_keys(tmp_path, "ci")
    write_keys(trusted, "other")
    (trusted / "README").write_text("no key")
    monkeypatch.setenv("EMBERLINE_SIGNING_KEY", str(private))
    signature = sign(STATEMENT)
    verify(STATEMENT, signature)  # one's own
    monkeypatch.setenv("EMBERLINE_TRUSTED_KEYS", str(trusted))
    with pytest.raises(JobFailed, match="which is not trusted; put that public key") as refusal:
        verify(STATEMENT, signature)
    assert signature.split(":")[1] in str(refusal.value)
    (trusted / "ci.pem").write_bytes(public.read_bytes())
    monkeypatch.delenv("EMBERLINE_SIGNING_KEY")  # who verifies need not be able to sign
    verify(STATEMENT, signature)


def test_keys_that_cannot_be_had_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = sign(STATEMENT)
    monkeypatch.setenv("EMBERLINE_TRUSTED_KEYS", str(tmp_path / "nowhere"))
    with pytest.raises(PreflightError, match="nowhere holds no public key; put PEM files"):
        verify(STATEMENT, signature)
    monkeypatch.delenv("EMBERLINE_TRUSTED_KEYS")
    monkeypatch.setenv("EMBERLINE_SIGNING_KEY", str(tmp_path / "gone.key"))
    with pytest.raises(PreflightError, match=r"gone\.key cannot be read .*EMBERLINE_SIGNING_KEY"):
        sign(STATEMENT)
    private, public = write_keys(tmp_path, "ec", ec.generate_private_key(ec.SECP256R1()))
    for path in (private, public):
        monkeypatch.setenv("EMBERLINE_SIGNING_KEY", str(path))
        with pytest.raises(PreflightError, match="is not an Ed25519 private key in PEM"):
            sign(STATEMENT)


def test_nobody_trusts_a_key_made_while_verifying(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    signature = sign(STATEMENT)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
    with pytest.raises(PreflightError, match="there is no key to trust; set EMBERLINE_TRUSTED_KEY"):
        verify(STATEMENT, signature)


def test_a_home_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(PreflightError, match=r"no signing key can be made at .*; set EMBERLINE"):
        sign(STATEMENT)


def test_the_digest_of_an_index_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(b"")
    assert index_digest(tmp_path) == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
