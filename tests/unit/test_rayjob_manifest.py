from __future__ import annotations

import copy
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from pydantic import ValidationError

from ray_jobs.errors import SpecError
from ray_jobs.owners import Owner
from ray_jobs.run import Run
from ray_jobs.spec import load_spec
from ray_jobs.targets.rayjob_manifest import adoption, rayjob_of
from ray_jobs.targets.rayjob_spec import RayJobSpec
from tests.chart.pod_security import broken_controls
from tests.kuberay_schemas import crd_schema

IMAGE = "registry.example.com/emberline:1"
OWNER = Owner("jobs", "train-1", "0a1b", "c0ffee", "run-7")
SETTINGS: dict[str, dict[str, Any]] = {
    "least": {},
    "most": {
        "service_account": "trainer", "image_pull_secrets": ["registry"], "queue": "gpus",
        "env": {"OMP_NUM_THREADS": "2"}, "volumes": {"runs": "/runs", "data": "/data"},
        "secrets": {"AWS_SECRET_ACCESS_KEY": {"secret": "aws", "key": "secret"}},
        "labels": {"team": "fire"}, "num_workers": 3, "user_id": 1000,
        "workers": {
            "num_cpus": 8, "memory_gb": 30.5, "num_gpus": 2, "node_selector": {"pool": "gpu"},
            "tolerations": [{"key": "spot", "operator": "Exists", "seconds": 60,
                             "effect": "NoExecute"}],
        },
    },
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(load_spec("fire", storage=str(tmp_path)), "night")


def manifest(run: Run, part: str | None = None, owner: Owner | None = None, **settings: Any) -> Any:
    spec = RayJobSpec(**{"image": IMAGE, **settings})
    return rayjob_of(run, "fire-night", spec, part, owner).manifest("jobs")


def templates(found: Any) -> dict[str, Any]:
    spec = found["spec"]
    cluster = spec["rayClusterSpec"]
    workers = {each["groupName"]: each["template"] for each in cluster.get("workerGroupSpecs", [])}
    return {
        "submitter": spec["submitterPodTemplate"],
        "head": cluster["headGroupSpec"]["template"],
        **workers,
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_kuberays_schema_takes_it(run: Run, name: str) -> None:
    found = manifest(run, owner=OWNER, **SETTINGS[name])
    validator = jsonschema.Draft202012Validator(crd_schema("rayjobs"))
    validator.validate(found)
    found["spec"]["backofLimit"] = 1
    with pytest.raises(jsonschema.ValidationError, match="backofLimit"):
        validator.validate(found)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_pod_is_one_that_kubernetes_takes_and_is_restricted(run: Run, name: str) -> None:
    found = templates(manifest(run, **SETTINGS[name]))
    assert len(found) == (2 if name == "least" else 3)
    for role, template in found.items():
        assert broken_controls(template["spec"]) == [], role
        (container,) = template["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert set(container["resources"]) == {"requests", "limits"}
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/tmp", "/home/emberline"} <= mounts
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}, "1.34", strict=True
        )


def test_it_ends_and_frees_its_pods_whatever_happens(run: Run) -> None:
    spec = manifest(run, num_retries=2, start_s=60, max_run_s=600, keep_s=5)["spec"]
    expected = {
        "submissionMode": "K8sJobMode", "backoffLimit": 2, "preRunningDeadlineSeconds": 60,
        "activeDeadlineSeconds": 600, "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 5, "submitterConfig": {"backoffLimit": 2},
    }  # fmt: skip
    assert expected.items() <= spec.items()
    assert spec["rayClusterSpec"]["rayVersion"] == version("ray")
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_the_settings_reach_the_pods(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    found = manifest(run, **SETTINGS["most"])
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    group = found["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (3, 3, 3)
    pod = group["template"]["spec"]
    assert pod["serviceAccountName"] == "trainer"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert [each["key"] for each in pod["tolerations"]] == ["spot", "nvidia.com/gpu"]
    assert pod["securityContext"]["runAsUser"] == 1000
    (container,) = pod["containers"]
    limits = {"cpu": "8", "memory": "31232Mi", "nvidia.com/gpu": "2"}
    assert container["resources"] == {"requests": limits, "limits": limits}
    env = {each["name"]: each for each in container["env"]}
    assert env["MLFLOW_TRACKING_URI"]["value"] == "http://mlflow"
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"] == {
        "secretKeyRef": {"name": "aws", "key": "secret"}
    }
    assert {"name": "claim-1", "mountPath": "/data"} in container["volumeMounts"]
    assert {"name": "claim-1", "persistentVolumeClaim": {"claimName": "data"}} in pod["volumes"]
    submitter = templates(found)["submitter"]["spec"]["containers"][0]
    assert "AWS_SECRET_ACCESS_KEY" not in str(submitter)  # it has no use for it


def test_the_job_is_told_its_pods_processors(run: Run) -> None:
    uri = run.storage.uri
    words = (
        f"python -m ray_jobs.train --spec {uri}/fire/night/spec.yaml --run-id night --storage {uri}"
    )
    assert manifest(run)["spec"]["entrypoint"] == f"{words} --set resources.num_cpus=2"
    part = manifest(run, "member-random_forest", num_workers=1, workers={"num_cpus": 4})
    assert part["spec"]["entrypoint"] == (
        f"python -m ray_jobs.part --run {uri}/fire/night --part member-random_forest --num-cpus 2"
    )
    own = Run(run.spec.replaced({"resources.num_cpus": 3}), "night")
    assert manifest(own)["spec"]["entrypoint"] == words


def test_no_text_of_a_run_becomes_a_word_of_a_shell(tmp_path: Path) -> None:
    storage = str(tmp_path / "a b; rm -rf $HOME")
    found = manifest(Run(load_spec("fire", storage=storage), "night"))
    assert f"--storage '{storage}'" in found["spec"]["entrypoint"]


def test_the_owner_is_told_and_kubernetes_deletes_it_with_its_pod(run: Run) -> None:
    metadata = manifest(run, "train", OWNER)["metadata"]
    assert metadata["labels"].items() >= {
        "emberline/owned": "true", "emberline/owner-uid": "0a1b", "emberline/kfp-run": "run-7",
    }.items()  # fmt: skip
    assert metadata["annotations"] == {
        "emberline/workload": "fire", "emberline/run-id": "night", "emberline/part": "train",
        "emberline/storage": run.storage.uri, "emberline/owner-namespace": "jobs",
        "emberline/owner-pod": "train-1", "emberline/owner-uid": "0a1b",
        "emberline/owner-cluster": "c0ffee", "emberline/kfp-run": "run-7",
    }  # fmt: skip
    reference = {
        "apiVersion": "v1", "kind": "Pod", "name": "train-1", "uid": "0a1b", "controller": False,
        "blockOwnerDeletion": False,
    }  # fmt: skip
    assert metadata["ownerReferences"] == [reference]


@pytest.mark.parametrize("owner", [None, Owner("elsewhere", "p", "0a1b"), Owner("jobs", "p")])
def test_a_reference_is_to_a_known_pod_of_the_namespace(run: Run, owner: Owner | None) -> None:
    assert "ownerReferences" not in manifest(run, owner=owner)["metadata"]


def test_another_owner_takes_the_place_of_the_first() -> None:
    found = {"metadata": {"annotations": {"emberline/owner-pod": "train-1"}}}
    changes = adoption(found, Owner("jobs", "train-2", "ff"), "jobs")["metadata"]
    assert changes["annotations"]["emberline/owner-pod"] == "train-2"
    assert changes["annotations"]["emberline/kfp-run"] is None  # it has none: the other's goes
    assert changes["labels"]["emberline/kfp-run"] is None
    assert [each["uid"] for each in changes["ownerReferences"]] == ["ff"]
    annotations = {key: value for key, value in changes["annotations"].items() if value}
    again = {"metadata": {"annotations": annotations}}
    assert adoption(again, Owner("jobs", "train-2", "ff"), "jobs") == {}


def test_an_image_is_needed(run: Run) -> None:
    with pytest.raises(SpecError, match=r"^rayjob\.image is required: --set rayjob\.image="):
        rayjob_of(run, "fire-night", RayJobSpec())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"namespace": "Jobs"},
            "'Jobs' is not the name of a namespace: small letters, digits, '-'",
        ),
        ({"queue": "a_b"}, "'a_b' is not the name of an object of Kubernetes"),
        ({"image": "my image"}, "'my image' is not an image, such as registry.example.com/"),
        ({"env": {"A-B": ""}}, "'A-B' is not the name of a variable"),
        ({"env": {"HOME": "/"}}, "HOME is set by this project or by KubeRay; take it out"),
        (
            {"env": {"DB_PASSWORD": "x"}},
            "DB_PASSWORD sounds like a secret, and everyone who may see the RayJob reads it; name "
            "a Secret instead: rayjob.secrets.DB_PASSWORD={secret: NAME, key: KEY}",
        ),
        ({"volumes": {"c": "runs"}}, "c: 'runs' is not a folder to mount at, such as /data"),
        ({"volumes": {"c": "/tmp"}}, "c: '/tmp' is not a folder to mount at"),
        ({"volumes": {"c": "/a", "d": "/a"}}, "two claims are mounted at the same path"),
        (
            {"env": {"A": "1"}, "secrets": {"A": {"secret": "s", "key": "k"}}},
            "A is set by env and by secrets; keep one",
        ),
        ({"start_s": 9, "max_run_s": 8}, "start_s=9 is over max_run_s=8; set it below"),
        ({"num_retries": 0}, "greater than or equal to 1"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        RayJobSpec(**settings)
