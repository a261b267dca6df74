"""Models that mean harm, in the registry's own folder or from an artifact store that lies: refused
by promote, predict, serve and deploy, for that reason, before anything in them runs."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines import prediction, serving
from ray_jobs.deploy import deploy
from ray_jobs.deployments.release import fetch
from ray_jobs.errors import EmberlineError, JobFailed, RetryableError, SpecError
from ray_jobs.promote import Refused, promote
from ray_jobs.serving.model import load_model
from ray_jobs.spec import load_spec
from ray_jobs.storage import Storage
from ray_jobs.tracking.artifacts import LIMIT_VARIABLE
from ray_jobs.tracking.gate import refusals
from ray_jobs.tracking.models import download, find_model
from ray_jobs.tracking.registry import RUN_ID_TAG, TEST_DIGEST_TAG, WORKLOAD_TAG, Registry
from ray_jobs.tracking.signing import (
    DIGEST_TAG,
    SIGNATURE_TAG,
    Statement,
    index_digest,
    sign,
)
from tests.conftest import train
from tests.unit.serving_models import PUBLISHED, fire_folder
from tests.unit.test_models_registry import register

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

NETWORK = "members/lstm_classifier/weights.safetensors"
JOB = (
    "data.samples=1500",
    "members={logistic_regression: {}, lstm_classifier: {epochs: 1, hidden_size: 8}}",
    "ensemble.strategy=equal",
    "promotion.max_gap=1",
    "promotion.max_ece=1",
)


class Payload:
    """Leaves a mark if it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run, version 1 of `fire`, and another version of it, both signed."""
    home = tmp_path_factory.mktemp("poisoned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(home / "config"))
        for name in ("EMBERLINE_SIGNING_KEY", "EMBERLINE_TRUSTED_KEYS", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        train(home, [("first", load_spec("fire", overrides=JOB))])
        register(home / "runs", "fire", fire_folder())
        yield home / "runs"


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy; the models' files are still those of the original."""
    return shutil.copytree(finished, tmp_path / "runs")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


def files_of(finished: Path, version: int) -> Path:
    source = Registry(Storage(finished))._client.get_model_version_download_uri(
        "fire", str(version)
    )
    return Path(source.removeprefix("file://")) / "artifacts" / "bundle"


@pytest.fixture
def bundle(finished: Path) -> Iterator[Path]:
    """The files of version 1, which are put back afterwards, with what lies beside them."""
    folder = files_of(finished, 1).parents[1]
    kept = folder.with_name(f"{folder.name}-kept")
    shutil.copytree(folder, kept)
    yield folder / "artifacts" / "bundle"
    shutil.rmtree(folder)
    kept.rename(folder)


def reindex(bundle: Path, *names: str) -> None:
    """Have the index vouch for files as they are now."""
    index = json.loads((bundle / "bundle.json").read_text())
    for name in names:
        index["files"][name] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(index))


def resign(root: Path, bundle: Path) -> None:
    """As somebody does who has got hold of a trusted key."""
    registry = Registry(Storage(root))
    version = registry.version("fire", 1)
    digest = index_digest(bundle)
    signature = sign(Statement("fire", version.run_id, digest))
    registry.tag(version, {DIGEST_TAG: digest, SIGNATURE_TAG: signature})


def said_by_promote(root: Path) -> str:
    with pytest.raises(Refused) as refused:
        promote(str(root), "fire", 1)
    assert Registry(Storage(root)).champion("fire") is None
    found = {verdict.rule: verdict.why for verdict in refusals(refused.value.promotion.verdicts)}
    return "; ".join(found[rule] for rule in ("artifact", "signature") if rule in found)


def said_by_predict(root: Path) -> str:
    rows = root.parent / "rows.csv"
    rows.write_text(f"{PUBLISHED}\n")
    with pytest.raises(JobFailed) as refused:
        prediction.predict(str(root), "fire", "1", str(rows), str(root.parent / "out.csv"))
    assert not (root.parent / "out.csv").exists()
    return str(refused.value)


def said_by_serve(root: Path) -> str:
    with pytest.raises(JobFailed) as refused:
        serving.serve(str(root), "fire", "1", "127.0.0.1", 0)
    return str(refused.value)


def said_by_deploy(root: Path) -> str:
    where = load_spec("fire", storage=str(root), overrides=["deployment.local.port=0"])
    with pytest.raises(JobFailed) as refused:
        deploy(where, "fire", 1, target="local")
    return str(refused.value)


WAYS = (said_by_promote, said_by_predict, said_by_serve, said_by_deploy)


# In the registry's own folder


def pickled(bundle: Path, mark: Path) -> str:
    (bundle / NETWORK).write_bytes(pickle.dumps(Payload(mark)))
    return f"the model's file {NETWORK} is not the one that was trained (sha256)"


def pickled_and_indexed(bundle: Path, mark: Path) -> str:
    pickled(bundle, mark)
    reindex(bundle, NETWORK)
    return "it was altered since; train and register it again"


def pickled_and_added(bundle: Path, mark: Path) -> str:
    (bundle / "model.pkl").write_bytes(pickle.dumps(Payload(mark)))
    return "the model's file model.pkl is not in its bundle.json; remove it"


def led_out(bundle: Path, mark: Path) -> str:
    (bundle.parent / "outside").write_bytes(pickle.dumps(Payload(mark)))
    reindex(bundle, "../outside")
    return "it was altered since; train and register it again"


def linked(bundle: Path, mark: Path) -> str:
    mark.with_name("elsewhere").write_bytes(pickle.dumps(Payload(mark)))
    (bundle / NETWORK).unlink()
    (bundle / NETWORK).symlink_to(mark.with_name("elsewhere"))
    return f"bundle/{NETWORK} is a link or no plain file; nothing of it is loaded"


def linked_folder(bundle: Path, mark: Path) -> str:
    (bundle / "members").rename(mark.with_name("members"))
    (bundle / "members").symlink_to(mark.with_name("members"))
    return "bundle/members is a link or no plain file; nothing of it is loaded"


def swapped(bundle: Path, mark: Path) -> str:
    """All of the other version's files, of which each is signed - as the other version's."""
    runs = next(path for path in bundle.parents if path.name == "runs")
    shutil.rmtree(bundle)
    shutil.copytree(files_of(runs, 2), bundle)
    return "it was altered since; train and register it again"


def swapped_weights(bundle: Path, mark: Path) -> str:
    runs = next(path for path in bundle.parents if path.name == "runs")
    shutil.copyfile(files_of(runs, 2) / NETWORK, bundle / NETWORK)
    return f"the model's file {NETWORK} is not the one that was trained (sha256)"


def without_an_index(bundle: Path, mark: Path) -> str:
    (bundle / "bundle.json").write_text("[" * 100_000)
    return "bundle.json"


@pytest.mark.parametrize(
    "poison",
    [
        pickled, pickled_and_indexed, led_out, linked, linked_folder, swapped, swapped_weights,
        without_an_index, pickled_and_added,
    ],
)  # fmt: skip
def test_altered_after_it_was_signed(
    root: Path, bundle: Path, mark: Path, poison: Callable[[Path, Path], str]
) -> None:
    reason = poison(bundle, mark)
    for way in WAYS:
        assert reason in way(root), way.__name__
    assert not mark.exists()
    assert not list(root.glob(".models/*.tmp"))


def test_the_payload_is_one(mark: Path) -> None:
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


def header_bomb(bundle: Path, mark: Path) -> None:
    (bundle / NETWORK).write_bytes(struct.pack("<Q", 1 << 60) + b"{" * 100)


def nested_header(bundle: Path, mark: Path) -> None:
    header = b'{"a":' * 200_000
    (bundle / NETWORK).write_bytes(struct.pack("<Q", len(header)) + header)


def enormous_tensor(bundle: Path, mark: Path) -> None:
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    ).encode()
    (bundle / NETWORK).write_bytes(struct.pack("<Q", len(header)) + header)


def signed_pickle(bundle: Path, mark: Path) -> None:
    (bundle / NETWORK).write_bytes(pickle.dumps(Payload(mark)))


@pytest.mark.parametrize("poison", [header_bomb, nested_header, enormous_tensor, signed_pickle])
def test_signed_with_a_trusted_key(
    root: Path, bundle: Path, mark: Path, poison: Callable[[Path, Path], None]
) -> None:
    """It is what was signed; but nothing is loaded that could run, or ask for all memory."""
    poison(bundle, mark)
    reindex(bundle, NETWORK)
    resign(root, bundle)
    for way in (said_by_promote, said_by_predict, said_by_serve):
        assert "the model cannot be loaded by this version: SafetensorError" in way(root)
    assert not mark.exists()


def test_code_beside_the_model_never_runs(root: Path, bundle: Path, mark: Path) -> None:
    """MLflow would run it in load_model; here nobody calls that."""
    model = bundle.parents[1]
    code = f"open({str(mark)!r}, 'w').close()\n"
    (model / "evil.py").write_text(code)
    text = (model / "MLmodel").read_text()
    assert "loader_module: " in text
    (model / "MLmodel").write_text(text.replace("loader_module: ", "loader_module: evil #"))
    for path in model.glob("*.py"):
        path.write_text(code)
    (model / "python_model.pkl").write_bytes(pickle.dumps(Payload(mark)))
    rows = root.parent / "rows.csv"
    rows.write_text(f"{PUBLISHED}\n")
    prediction.predict(str(root), "fire", "1", str(rows), str(root.parent / "out.csv"))
    assert promote(str(root), "fire", 1).outcome == "promoted"
    assert not mark.exists()


def test_files_that_are_too_large(
    root: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0.001")
    for way in WAYS:
        assert f"the limit; set {LIMIT_VARIABLE} if that is right" in way(root)
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    with pytest.raises(SpecError, match="='much' is no number of megabytes"):
        fetch(Storage(str(root)), "fire", "1")


# From a store that lies


class Store:
    """An artifact store: the files of a bundle, and what it says in place of some."""

    def __init__(self, bundle: Path):
        self.lies: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.partition("/artifacts/bundle/")[2]
                store.asked.append(name)
                if name in store.lies:
                    store.lies[name](self)
                elif (bundle / name).is_file():
                    answer(self, (bundle / name).read_bytes())
                else:
                    self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = (
            f"http://127.0.0.1:{self.server.server_port}/api/2.0/mlflow-artifacts/artifacts/m"
        )


def answer(handler: BaseHTTPRequestHandler, content: bytes, **headers: str) -> None:
    handler.send_response(200)
    handler.send_header("content-length", str(len(content)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(10_000):
            handler.wfile.write(b" " * 1_000_000)
    except OSError:  # whoever asked has had enough
        pass


@pytest.fixture(scope="module")
def honest() -> Iterator[Store]:
    store = Store(fire_folder())
    thread = threading.Thread(target=store.server.serve_forever)
    thread.start()
    yield store
    store.server.shutdown()
    thread.join()
    store.server.server_close()


@pytest.fixture
def store(honest: Store) -> Store:
    honest.lies.clear()
    honest.asked.clear()
    return honest


@pytest.fixture(scope="module")
def registered(honest: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """A version whose files are in that store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield register_in(honest, tmp_path_factory.mktemp("registered"))


def register_in(store: Store, home: Path) -> Storage:
    storage = Storage(home)
    client = Registry(storage)._client
    client.create_registered_model("fire")
    digest = index_digest(fire_folder())
    tags = {
        RUN_ID_TAG: "a",
        WORKLOAD_TAG: "fire",
        TEST_DIGEST_TAG: "d",
        DIGEST_TAG: digest,
        SIGNATURE_TAG: sign(Statement("fire", "a", digest)),
    }
    run = client.create_run("0")
    client.create_model_version("fire", store.url, run.info.run_id, tags=tags)
    return storage


def fetched(storage: Storage, folder: Path) -> Path:
    return download(find_model(storage, "fire", 1), folder)


def refusal(
    storage: Storage, folder: Path, kind: type[EmberlineError] = JobFailed
) -> tuple[str, str]:
    """Of serve and predict, and of promote. Neither leaves anything behind."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(kind) as of_download:
        load_model(fetched(storage, folder))
    registry = Registry(storage)
    with pytest.raises(kind) as of_gate:
        load_model(registry.download(registry.version("fire", 1), folder / "gate"))
    assert not list(folder.glob("*.tmp"))
    assert [path for path in sorted(folder.parent.rglob("*")) if path not in before] == [
        path for path in sorted(folder.parent.rglob("*")) if path.is_relative_to(folder)
    ]
    return str(of_download.value), str(of_gate.value)


def test_what_the_index_names_is_all_that_is_asked_for(
    store: Store, registered: Storage, tmp_path: Path
) -> None:
    folder = fetched(registered, tmp_path / "cache")
    assert load_model(folder, digest=folder.name).workload == "fire"
    files = json.loads((fire_folder() / "bundle.json").read_text())["files"]
    assert store.asked == ["bundle.json", *files]  # no listing is believed


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../outside", "the model's file ../outside is not within its folder"),
        ("/etc/outside", "the model's file /etc/outside is not within its folder"),
        ("a/../../outside", "the model's file a/../../outside is not within its folder"),
        ("bundle.json", "its file bundle.json has no name of a file"),
        ("x" * 300, "has no name of a file"),
        (f"{NETWORK}/x", "has no name of a file"),
    ],
)
def test_an_index_that_leads_out(
    store: Store, registered: Storage, tmp_path: Path, name: str, message: str
) -> None:
    index = json.loads((fire_folder() / "bundle.json").read_text())
    index["files"][name] = "0" * 64
    content = json.dumps(index).encode()
    store.lies["bundle.json"] = lambda handler: answer(handler, content)
    store.lies.setdefault(name, lambda handler: answer(handler, b""))
    assert all(message in said for said in refusal(registered, tmp_path / "cache"))


@pytest.mark.parametrize("name", ["bundle.json", NETWORK])
def test_a_file_without_an_end(
    store: Store,
    registered: Storage,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "2")
    store.lies[name] = endless
    for said in refusal(registered, tmp_path / "cache"):
        assert "fire version 1: its files are larger than the " in said


def test_a_file_that_swells(
    store: Store, registered: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "2")
    content = gzip.compress(bytes(50_000_000))
    store.lies[NETWORK] = lambda handler: answer(handler, content, content_encoding="gzip")
    for said in refusal(registered, tmp_path / "cache"):
        assert "its files are larger than the " in said


def test_another_file_in_place_of_one(
    store: Store, registered: Storage, tmp_path: Path, mark: Path
) -> None:
    content = pickle.dumps(Payload(mark))
    store.lies[NETWORK] = lambda handler: answer(handler, content)
    said = refusal(registered, tmp_path / "cache")
    assert said == (f"the model's file {NETWORK} is not the one that was trained (sha256)",) * 2
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[" * 100_000, b'{"files": []}', b'{"files": {"a": 1}}', b"\xff"]
)
def test_an_index_that_is_none(
    store: Store, registered: Storage, tmp_path: Path, content: bytes
) -> None:
    store.lies["bundle.json"] = lambda handler: answer(handler, content)
    for said in refusal(registered, tmp_path / "cache"):
        assert said.startswith("fire version 1: ")
        assert "bundle.json" in said


def test_a_file_that_is_gone(store: Store, registered: Storage, tmp_path: Path) -> None:
    store.lies[NETWORK] = lambda handler: handler.send_error(404)
    for said in refusal(registered, tmp_path / "cache"):
        assert f"fire version 1 has no bundle at {store.url}" in said


def test_a_store_that_fails(store: Store, registered: Storage, tmp_path: Path) -> None:
    def cut_off(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        handler.wfile.write(b"x")
        handler.close_connection = True

    for lie in (lambda handler: handler.send_error(500), cut_off):
        store.lies[NETWORK] = lie
        for said in refusal(registered, tmp_path / "cache", RetryableError):
            assert "did not answer: " in said
        shutil.rmtree(tmp_path / "cache")
    store.lies.clear()
    assert fetched(registered, tmp_path / "cache").is_dir()
