"""Models behind endpoints of SageMaker: each change is done when its versions have answered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_jobs.bundle import describe
from ray_jobs.data.dataset import Rows
from ray_jobs.data.features import FEATURES
from ray_jobs.deployments.base import Deployment, Release
from ray_jobs.deployments.sagemaker import SageMakerDeployer
from ray_jobs.deployments.sagemaker.capture import read_capture
from ray_jobs.deployments.spec import DeploymentSpec
from ray_jobs.ensembling.ensemble import Ensemble
from ray_jobs.errors import JobFailed, PreflightError, RetryableError, SpecError
from ray_jobs.models.base import FitContext
from ray_jobs.models.bundle_files import add_files, write_index
from ray_jobs.models.registry import FAMILIES
from ray_jobs.result import Objective
from ray_jobs.serving.example import EXAMPLE, read_example, record_example
from ray_jobs.serving.model import load_model
from ray_jobs.spec import load_spec
from ray_jobs.tracking.models import LocatedModel
from ray_jobs.tracking.signing import index_digest
from tests.sagemaker_emulator.aws import AWS
from tests.unit.serving_models import CSV, PUBLISHED, new_folder, readings

pytest_plugins = ["tests.sagemaker_emulator.fixtures"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ENDPOINT = "emberline-fire"


@cache
def bundle(seed: int) -> Path:
    """A logistic regression with its example, as a folder that is named by its digest."""
    folder = new_folder()
    x = readings(200, seed)
    y = (x[:, 0] + x[:, seed + 1] > 40).astype(np.int8)
    rows = Rows(x, y, np.arange(200) // 10, np.arange(200), FEATURES)
    config = FAMILIES["logistic_regression"].model_validate({})
    member = config.build()
    member.fit(rows, rows, FitContext(seed, Objective(metric="f1", mode="max")))
    home = folder / "members" / "logistic_regression"
    home.mkdir(parents=True)
    member.save(home)
    ensemble = Ensemble.model_validate(
        {"strategy": "single", "blend": {"weights": {"logistic_regression": 1.0}}}
        | {"calibration": {"kind": "sigmoid", "slope": 1.0, "intercept": 0.0}, "threshold": 0.5}
    )
    write_index(folder, describe(FEATURES, ensemble, {"logistic_regression": config}), {})
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(home.iterdir())
    }
    add_files(folder, files)
    example = record_example(load_model(folder).scorer, CSV, PUBLISHED.encode())
    add_files(folder, {EXAMPLE: example.to_json().encode()})
    return named(folder)


def recorded(seed: int) -> float:
    """The probability of the published request, as the model gave it here."""
    return read_example(bundle(seed)).answer[0]["probability"]


def named(folder: Path) -> Path:
    return folder.rename(folder.with_name(index_digest(folder)))


def release(version: int, folder: Path | None = None) -> Release:
    model = LocatedModel("fire", version, None, None, {}, "sqlite:///registry.db")
    return Release(model, folder or bundle(version))


def altered(version: int, change: Callable[[Path], None]) -> Release:
    """A version whose bundle was changed after it was indexed, but for its digest."""
    folder = shutil.copytree(bundle(version), new_folder() / "model")
    change(folder)
    return release(version, folder.rename(folder.with_name(bundle(version).name)))


def with_other_answer(version: int) -> Release:
    """A version whose recorded example says what its model does not."""
    folder = shutil.copytree(bundle(version), new_folder() / "model")
    raw = json.loads((folder / EXAMPLE).read_bytes())
    raw["answer"][0]["probability"] = 0.123456
    index = json.loads((folder / "bundle.json").read_bytes())
    del index["files"][EXAMPLE]
    (folder / EXAMPLE).unlink()
    (folder / "bundle.json").write_text(json.dumps(index))
    add_files(folder, {EXAMPLE: json.dumps(raw).encode()})
    return release(version, named(folder))


def deployer(aws: AWS, *overrides: str) -> SageMakerDeployer:
    settings = (
        f"sagemaker.role_arn={aws.role_arn}",
        f"sagemaker.image_uri={aws.image_uri}",
        "sagemaker.poll_interval_s=0.1",
    )
    spec = load_spec("fire", overrides=[*settings, *overrides], storage=f"s3://{aws.bucket}/team")
    return SageMakerDeployer(spec)


class Place:
    """A deployer with the settings that a test gives, and what it has said."""

    def __init__(self, aws: AWS):
        self.aws = aws
        self.said: list[str] = []
        self.deployer = deployer(aws)

    def deploy(
        self, champion: Release, other: Release | None = None, **settings: Any
    ) -> Deployment:
        spec = DeploymentSpec.model_validate({"record": {"share": 0}, **settings})
        try:
            return self.deployer.deploy(champion, spec, challenger=other, say=self.said.append)
        except JobFailed as error:
            error.add_note(self.log())
            raise

    def probability(self) -> float:
        answer = json.loads(self.deployer.invoke("fire", PUBLISHED.encode(), CSV))
        return answer["predictions"][0]["probability"]

    def version(self) -> str:
        answer = json.loads(self.deployer.invoke("fire", PUBLISHED.encode(), CSV))
        return answer["predictions"][0]["model_version"]

    def log(self) -> str:
        return "\n".join(one.log() for one in self.aws.emulator.hosting.endpoints.values())

    @property
    def parts(self) -> tuple[int, int, int]:
        """How many endpoints, configurations and models there are."""
        hosting = self.aws.emulator.hosting
        return len(hosting.endpoints), len(hosting.configs), len(hosting.models)


@pytest.fixture
def place(aws: AWS) -> Place:
    return Place(aws)


def test_from_the_first_version_to_nothing(place: Place) -> None:
    first = place.deploy(release(1))
    assert (first.status, first.target, first.name, first.model) == (
        "RUNNING", "sagemaker", "fire", "fire",
    )  # fmt: skip
    assert [(one.version, one.digest, one.weight) for one in first.variants] == [
        ("1", bundle(1).name, 1.0)
    ]
    (cost,) = first.costs
    assert cost.resource == "endpoint emberline-fire, champion: 1 x ml.m5.large"
    assert cost.usd_per_hour is None
    assert cost.note.startswith("prices.csv has none for hosting in eu-west-1; set")
    probability = place.probability()
    assert probability == pytest.approx(recorded(1))
    assert place.version() == "1"

    # the same again is left alone
    before = place.aws.recorded_mutations()
    assert place.deploy(release(1)) == first
    assert place.aws.recorded_mutations() == before

    second = place.deploy(release(2))
    assert place.version() == "2"
    assert place.probability() != probability
    assert [one.version for one in second.variants] == ["2"]
    assert place.parts == (1, 2, 2)  # the one before can be gone back to
    place.deploy(release(3))
    assert place.parts == (1, 2, 2)
    assert place.deployer.list() == [place.deployer.find("fire")]

    place.said.clear()
    removed = place.deployer.delete("fire", place.said.append)
    assert [line.rpartition(" ")[0] for line in removed] == [
        "endpoint", "endpoint configuration", "endpoint configuration", "model", "model",
    ]  # fmt: skip
    assert place.parts == (0, 0, 0)
    assert any(f"/models/{bundle(3).name}/model.tar.gz stays on S3" in say for say in place.said)
    assert place.deployer.find("fire") is None
    with pytest.raises(SpecError, match=r"no deployment 'fire' is on SageMaker .* there is none"):
        place.deployer.delete("fire", print)
    with pytest.raises(JobFailed, match="there is no endpoint 'emberline-fire'"):
        place.probability()


def damage(folder: Path) -> None:
    (path,) = (folder / "members" / "logistic_regression").iterdir()
    path.write_bytes(path.read_bytes()[:-1])


def test_a_version_that_does_not_come_up_takes_nothing_from_the_one_before(place: Place) -> None:
    with pytest.raises(JobFailed, match=r"fire is not deployed: .* did not pass the ping health"):
        place.deploy(altered(1, damage))
    assert place.parts == (0, 0, 0)
    place.deploy(release(1))
    with pytest.raises(JobFailed) as failure:
        place.deploy(altered(2, damage))
    assert str(failure.value) == (
        "fire: The primary container for production variant champion did not pass the ping health "
        "check. Please check CloudWatch logs for this endpoint.; version 1 answers as before"
    )
    assert place.version() == "1"
    assert place.parts == (1, 1, 1)


def test_a_version_that_answers_otherwise_is_not_deployed(place: Place) -> None:
    with pytest.raises(JobFailed, match=r"fire is not deployed: fire version 1 does not answer it"):
        place.deploy(with_other_answer(1))
    assert place.parts == (0, 0, 0)
    folder = shutil.copytree(bundle(1), new_folder() / "model")
    (folder / EXAMPLE).unlink()
    with pytest.raises(JobFailed, match=r"has no example\.json to ask an endpoint for; train it a"):
        place.deploy(release(1, folder))
    assert place.parts == (0, 0, 0)


def test_a_change_that_was_cut_off_is_seen_through(place: Place) -> None:
    waiting = place.deploy(release(1), sagemaker={"max_wait_s": 0})
    assert waiting.status == "PENDING"
    assert place.deploy(release(1)).status == "RUNNING"
    # an unproven change is gone back from, though another command made it
    wrong = with_other_answer(2)
    place.deploy(wrong, sagemaker={"max_wait_s": 0})
    s3, key = place.aws.client("s3"), f"team/models/{bundle(1).name}/model.tar.gz"
    archive = {"Bucket": place.aws.bucket, "Key": key}
    content = s3.get_object(**archive)["Body"].read()
    s3.delete_object(**archive)
    with pytest.raises(JobFailed, match=r"did not go back to .* \(Could not access model data at"):
        place.deploy(wrong)
    assert place.parts == (1, 2, 2)  # nothing is removed that may answer
    s3.put_object(**archive, Body=content)
    with pytest.raises(JobFailed, match=r"prediction 1: probability: .*; version 1 answers as be"):
        place.deploy(wrong)
    assert place.version() == "1"
    assert place.parts == (1, 1, 1)
    place.aws.emulator.hosting.may_go_on.clear()
    with pytest.raises(RetryableError, match=r"is still Updating after .*\.max_wait_s=1; it goes"):
        place.deploy(release(2), sagemaker={"max_wait_s": 1})
    place.aws.emulator.hosting.may_go_on.set()
    place.deploy(release(2), sagemaker={"max_wait_s": 200})
    assert place.version() == "2"


def test_champion_and_challenger(place: Place) -> None:
    scaled = {"max_instances": 3, "target_invocations_per_minute": 500}
    both = place.deploy(
        release(1),
        release(2),
        challenger={"version": "2", "mode": "split", "weight": 0.25},
        sagemaker=scaled,
    )
    assert [(one.version, one.weight, one.is_shadow) for one in both.variants] == [
        ("1", 0.75, False), ("2", 0.25, False),
    ]  # fmt: skip
    asked = [place.version() for _ in range(40)]
    assert abs(asked.count("2") - 10) <= 2
    assert both.details["autoscaling of challenger"] == (
        "1 to 3 instances, 500 requests a minute each"
    )

    shadow = place.deploy(
        release(1),
        release(2),
        challenger={"version": "2", "mode": "shadow", "weight": 1},
        record={"share": 1},
        sagemaker=scaled | {"rollout": "canary", "bake_s": 60},
    )
    assert [(one.version, one.weight, one.is_shadow) for one in shadow.variants] == [
        ("1", 1.0, False), ("2", 1.0, True),
    ]  # fmt: skip
    assert {place.version() for _ in range(4)} == {"1"}
    captured(place, shadow)
    assert "autoscaling of challenger" not in shadow.details
    assert any("S3 charges" in cost.note for cost in shadow.costs)

    assert "no canary rollout: the variants are not those before" not in place.said

    settings = scaled | {"rollout": "canary", "bake_s": 60}
    alone = place.deploy(release(1), sagemaker=settings)
    assert "no canary rollout: the variants are not those before" in place.said
    assert [one.version for one in alone.variants] == ["1"]
    removed = place.deployer.delete("fire", print)
    assert removed[:2] == ["autoscaling of emberline-fire, champion", "endpoint emberline-fire"]
    assert place.parts == (0, 0, 0)
    client = place.aws.client("application-autoscaling")
    assert client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"] == []


def captured(place: Place, shadow: Deployment) -> None:
    """The four requests before, and the example, are live records of both variants."""
    uri = shadow.details["capture"]
    assert uri == f"s3://{place.aws.bucket}/team/capture/{ENDPOINT}/"
    scorer = load_model(bundle(1)).scorer
    key = uri.removeprefix(f"s3://{place.aws.bucket}/") + "champion/2026/01/01/00/cut-off.jsonl"
    place.aws.client("s3").put_object(Bucket=place.aws.bucket, Key=key, Body=b'{"captureData":')
    digest_of = {one.version: one.digest for one in shadow.variants}.__getitem__
    records = read_capture(uri, scorer, digest_of, lambda _: True)
    found = list(records)
    assert records.num_malformed == 1
    assert len(found) == 10
    for seed, variant in ((1, "champion"), (2, "challenger")):
        those = [record for record in found if record.variant == variant]
        assert len(those) == 5
        for record in those:
            assert (record.version, record.digest) == (str(seed), bundle(seed).name)
            assert record.is_shadow is (variant == "challenger")
            assert record.outputs is not None
            assert record.outputs["probability"] == [pytest.approx(recorded(seed))]
            assert record.features is not None
            assert [values[0] for values in record.features.values()] == [
                float(cell) for cell in PUBLISHED.split(",")
            ]
    since = datetime.now(UTC)
    assert list(read_capture(uri, scorer, digest_of, lambda _: True, since)) == []


def test_what_is_not_to_be_trusted(place: Place) -> None:
    place.deploy(release(1))
    hosting = place.aws.emulator.hosting
    hosting.mutate = lambda answer: answer | {"EndpointStatus": "Dreaming"}
    with pytest.raises(RetryableError, match=r"cannot be read .unknown status 'Dreaming'.; try"):
        place.deployer.find("fire")
    hosting.mutate = lambda answer: {k: v for k, v in answer.items() if k != "EndpointStatus"}
    with pytest.raises(RetryableError, match="EndpointStatus: Field required"):
        place.deploy(release(2))
    hosting.mutate = None
    assert place.version() == "1"
    with pytest.raises(JobFailed, match=r"emberline-fire answers 422: .*row 1"):
        place.deployer.invoke("fire", b"1,2,3", CSV)

    # another's endpoint of that name is left alone
    del hosting.endpoints[ENDPOINT].tags["emberline:project"]
    assert place.deployer.find("fire") is None
    assert place.deployer.list() == []
    with pytest.raises(
        PreflightError, match=r"that this project did not make; set deployment\.name"
    ):
        place.deploy(release(2))
    with pytest.raises(PreflightError, match="did not make"):
        place.deployer.delete("fire", print)
    assert place.parts == (1, 1, 1)


def test_a_look_changes_nothing(place: Place) -> None:
    before = len(place.aws.recorded_mutations())
    spec = DeploymentSpec.model_validate(
        {
            "challenger": {"version": "2", "mode": "split"},
            "sagemaker": {
                "instance_type": "ml.m5.xlarge",
                "alarms": ["errors"],
                "bake_s": 60,
                "max_instances": 3,
                "target_invocations_per_minute": 100,
            },
        }
    )
    found = {check.name: check for check in place.deployer.check("fire", spec).checks}
    assert found["endpoint"].found == "emberline-fire will be made"
    assert found["request"].passed is True
    assert found["cost"].found == (
        "0.51 to 1.54 USD/hour for as long as it is there (0.257 USD/hour on 2023-12-31 an "
        "instance)"
    )
    assert found["alarms"].found == (
        "CloudWatch has no alarm 'errors' in eu-west-1; make it, or take it out of "
        "deployment.sagemaker.alarms"
    )
    for name in ("image", "role's trust", "bucket", "sagemaker:CreateEndpoint", "quota",
                 "application-autoscaling:PutScalingPolicy"):  # fmt: skip
        assert found[name].passed is not False, found[name]
    missing = SageMakerDeployer(load_spec("fire", storage=f"s3://{place.aws.bucket}/team"))
    failed = {check.name for check in missing.check("fire", DeploymentSpec()).failed}
    assert failed == {"role", "image", "request"}
    assert len(place.aws.recorded_mutations()) == before
