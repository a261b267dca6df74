"""The storage layer, and what stands on it, against a real S3 server: MinIO."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import boto3
import pytest

from ray_jobs.errors import PreflightError, RetryableError
from ray_jobs.models.bundle_files import INDEX
from ray_jobs.serving.model import load_model
from ray_jobs.storage import Storage, StorageRefused, StorageUnavailable
from ray_jobs.tracking import exclusive
from ray_jobs.tracking.models import download, find_model
from ray_jobs.tracking.signing import index_digest
from tests.contract.mlflow_server import mlflow_server
from tests.s3_server import S3Server, use
from tests.unit.serving_models import fire_folder
from tests.unit.test_models_registry import own_signing_key, register

pytest_plugins = ["tests.s3_fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

BUCKET = "runs"
NAMES = [
    "plain.json", "with space", "a+b", "100%", "%2F", "q?x=1&y#z", "a=b;c,d", "ünïcode-é",
    "日本語/モデル", "🔥", "~tilde", "(round) [square] {curly}", "'single' \"double\"", "dots...",
    "UPPER", "a/b/c/d/e/f/g/h", "x" * 200,
]  # fmt: skip


@pytest.fixture
def there(
    minio: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Storage:
    """A root of the test's own."""
    use(minio, monkeypatch)
    return Storage(f"s3://{BUCKET}/{request.node.name.partition('[')[0]}")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_comes_back(there: Storage, tmp_path: Path, name: str) -> None:
    path = f"folder/{name}"
    content = name.encode() * 3
    there.write_bytes(path, content)
    assert there.exists(path)
    assert there.read_bytes(path) == content
    assert path in there.list("folder", recursive=True)
    with there.open_input(path) as file:
        file.seek(len(content) - 1)
        assert file.read() == content[-1:]
    with there.local_folder("folder") as folder:
        assert (folder / name).read_bytes() == content
    there.delete(path)
    assert not there.exists(path)
    assert path not in there.list("folder", recursive=True)


def test_empty_files_and_folders(there: Storage) -> None:
    there.write_bytes("folder/empty", b"")
    assert there.read_bytes("folder/empty") == b""
    there.make_folder("made/deep")
    assert there.exists("made/deep")
    assert there.list("made/deep") == []
    there.delete("folder/empty")  # the last file of a folder does not take the folder along
    assert there.list() == ["folder", "made"]
    there.delete_folder("made")
    assert not there.exists("made")
    there.delete_folder("made")


def test_a_folder_is_not_one_whose_name_begins_alike(there: Storage) -> None:
    there.write_text("run-1/a", "1")
    there.write_text("run-10/a", "10")
    there.write_text("run-1.json", "{}")
    assert there.list("run-1", recursive=True) == ["run-1/a"]
    assert not there.exists("run")
    assert there.list("run") == []
    there.delete_folder("run-1")
    assert there.list() == ["run-1.json", "run-10"]


def test_a_listing_goes_past_a_page(there: Storage) -> None:
    """S3 gives a thousand names a page, and takes as many to delete."""
    names = [f"many/{number:04d}" for number in range(1050)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: there.write_bytes(name, b"x"), names))
    assert there.list("many") == names
    there.delete_folder("many")
    assert there.list("many") == []


def test_a_big_file_goes_in_parts(there: Storage, minio: S3Server) -> None:
    block = hashlib.sha256(b"block").digest() * 32768  # 1 MiB
    with there.open_output("big") as file:
        for _ in range(25):
            file.write(block)
        file.write(b"end")
    head = minio.client().head_object(Bucket=BUCKET, Key=f"{there.uri.split('/', 3)[3]}/big")
    assert head["ContentLength"] == 25 * len(block) + 3
    assert int(head["ETag"].strip('"').partition("-")[2]) >= 2  # the number of parts
    expected = hashlib.sha256(block * 25 + b"end").digest()
    assert hashlib.sha256(there.read_bytes("big")).digest() == expected
    with there.local_folder("") as folder:
        assert hashlib.sha256((folder / "big").read_bytes()).digest() == expected


def test_a_write_that_fails_leaves_nothing(there: Storage, minio: S3Server) -> None:
    def fail(name: str, content: bytes) -> None:
        with there.open_output(name) as file:
            file.write(content)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail("half", b"x" * (12 << 20))
    assert not there.exists("half")
    assert "Uploads" not in minio.client().list_multipart_uploads(Bucket=BUCKET)
    there.write_text("whole", "old")
    with pytest.raises(RuntimeError):
        fail("whole", b"new")
    assert there.read_text("whole") == "old"


def test_a_folder_is_published_in_place_of_the_old_one(there: Storage, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "ü 1.txt").write_text("2")
    (tmp_path / "empty").write_bytes(b"")
    there.write_text("model/old", "1")
    there.publish_folder(tmp_path, "model")
    assert there.list("model", recursive=True) == [
        "model/deep", "model/deep/ü 1.txt", "model/empty",
    ]  # fmt: skip
    with there.local_folder("model") as folder:
        assert (folder / "deep" / "ü 1.txt").read_text() == "2"


# Refusals


def test_wrong_credentials_are_refused(there: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the secret")
    with pytest.raises(StorageRefused) as caught:
        Storage(there.uri).read_bytes("a")
    assert caught.value.exit_code == PreflightError.exit_code
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(StorageRefused, match="refuses access"):
        Storage(there.uri).list()
    with pytest.raises(StorageRefused, match=r"did not take a \(InvalidAccessKeyId\)"):
        exclusive.create(Storage(there.uri), "a", b"")


def test_a_bucket_that_is_not_there_is_refused(there: Storage) -> None:
    storage = Storage("s3://no-such-bucket/root")
    with pytest.raises(StorageRefused, match=r"refuses access \(AWS Error NO_SUCH_BUCKET\)"):
        storage.write_bytes("a", b"")
    with pytest.raises(PreflightError, match=r"cannot be written \(NO_SUCH_BUCKET\)\. Set"):
        storage.check_writable()
    with pytest.raises(StorageRefused, match=r"did not take a \(NoSuchBucket\)"):
        exclusive.create(storage, "a", b"")


def test_a_session_that_may_only_read(
    there: Storage, minio: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials with a token and a policy, as a role of AWS gives them."""
    there.write_text("a", "1")
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:ListBucket"],
                "Resource": ["arn:aws:s3:::*"],
            }
        ],
    }
    role = minio.client("sts").assume_role(
        RoleArn="arn:aws:iam::000000000000:role/reader",
        RoleSessionName="reader",
        Policy=json.dumps(policy),
    )["Credentials"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", role["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", role["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", role["SessionToken"])
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    storage = Storage(there.uri)
    assert storage.read_text("a") == "1"
    assert storage.list() == ["a"]
    for act, cause in (
        (lambda: storage.write_text("b", "2"), "AWS Error ACCESS_DENIED"),
        (lambda: storage.delete("a"), "AWS Error ACCESS_DENIED"),
        (lambda: storage.delete_folder(""), "not deleted: Access Denied"),
    ):
        with pytest.raises(StorageRefused, match=rf"refuses access \({cause}\)"):
            act()
    with pytest.raises(PreflightError, match=r"cannot be written \(ACCESS_DENIED\)\. Set"):
        storage.check_writable()
    with pytest.raises(StorageRefused, match=r"did not take b \(AccessDenied\)"):
        exclusive.create(storage, "b", b"")
    assert there.list() == ["a"]


# A server that dies


def test_a_server_that_was_killed_keeps_what_it_took(
    mortal_minio: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    storage = Storage(f"s3://{BUCKET}/root")
    big = bytes(range(256)) * (48 << 10)  # 12 MiB
    storage.write_bytes("big", big)
    storage.write_text("small", "old")
    mortal_minio.kill()
    with pytest.raises(StorageUnavailable, match=r"does not answer \(AWS Error NETWORK_CONNECTION"):
        storage.write_text("small", "new")
    with pytest.raises(StorageUnavailable, match="does not answer"):
        exclusive.create(storage, "once", b"")
    mortal_minio.start()
    assert storage.read_text("small") == "old"
    assert storage.read_bytes("big") == big
    assert storage.list() == ["big", "small"]
    storage.write_text("small", "new")
    assert storage.read_text("small") == "new"


# MLflow


@pytest.mark.parametrize("is_server", [False, True])
def test_models_outlast_the_death_of_their_store(
    mortal_minio: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_server: bool
) -> None:
    """Whether MLflow's own server passes the artifacts on, or each process reaches them itself."""
    artifacts, bundle = f"s3://{BUCKET}/mlartifacts", fire_folder()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the server's too
    with ExitStack() as stack:
        stack.enter_context(own_signing_key(tmp_path / "config"))
        server = ""
        if is_server:
            database = f"sqlite:///{tmp_path / 'server.db'}"
            server = stack.enter_context(mlflow_server(database, tmp_path, artifacts))
        first = register(tmp_path, "fire", bundle, artifacts=artifacts, server=server)
        if server:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        model = find_model(Storage(tmp_path), "fire", first)
        assert load_model(download(model, tmp_path / "1"), digest=index_digest(bundle))
        stored = mortal_minio.client().list_objects_v2(Bucket=BUCKET)
        assert any(item["Key"].endswith("/bundle/" + INDEX) for item in stored["Contents"])

        mortal_minio.kill()
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            with pytest.raises(RetryableError, match=r"MLflow at .* give the same command again"):
                download(model, tmp_path / "2")
        mortal_minio.start()
        assert index_digest(download(model, tmp_path / "2")) == index_digest(bundle)
        second = register(tmp_path, "fire", bundle, artifacts=artifacts, server=server)
        assert (first, second) == (1, 2)
