"""What each ServiceAccount of the chart may do, as the API server answers the account itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.owners import Owner
from ray_jobs.spec import load_spec
from ray_jobs.targets.rayjob import RayJobTarget
from tests.cluster.api import Api, Refused
from tests.cluster.control_plane import ControlPlane
from tests.cluster.helm import Helm

_RELEASE, _PREFIX = "rel", "ml"  # fullnameOverride of the values
_ACCOUNTS = ["mlflow", "postgresql", "serving", "ray", "webhook", "pipeline", "training", "reaper"]
_OTHER = "kubeflow"  # whose pipeline-runner has the pipeline's Role in the release's namespace

# (verbs, group/resource), in the release's namespace; nothing else is allowed to anyone.
_ALLOWED: dict[str, list[tuple[str, str]]] = {
    "pipeline": [
        ("create get list patch delete", "ray.io/rayjobs"),
        ("list", "/pods"),
        ("get", "/pods/log"),
    ],
    "reaper": [
        ("get list delete", "ray.io/rayjobs"),
        ("get list", "/pods"),
    ],
}
_VERBS = ("get", "list", "watch", "create", "update", "patch", "delete")
_RESOURCES = (
    "/pods", "/pods/log", "/pods/exec", "/secrets", "/configmaps", "/serviceaccounts", "/services",
    "/events", "/persistentvolumeclaims", "apps/deployments", "batch/jobs",
    "rbac.authorization.k8s.io/roles", "rbac.authorization.k8s.io/rolebindings",
    "ray.io/rayjobs", "ray.io/rayclusters",
)  # fmt: skip
_SENSITIVE = (  # what no account may do, anywhere
    "create /pods/exec", "get /secrets", "list /secrets", "create /pods", "delete /pods",
    "create /serviceaccounts/token", "create rbac.authorization.k8s.io/rolebindings",
    "escalate rbac.authorization.k8s.io/roles", "impersonate /users", "patch apps/deployments",
    "get /nodes", "list /namespaces",
)  # fmt: skip


@pytest.fixture(scope="module")
def release(helm: Helm, shared_namespace: str) -> Iterator[str]:
    """The namespace of a release with all parts."""
    helm.install(_RELEASE, shared_namespace, "everything")
    yield shared_namespace
    helm("uninstall", _RELEASE, "--namespace", shared_namespace)


@pytest.mark.parametrize("account", _ACCOUNTS)
def test_an_account_may_do_what_it_needs_and_nothing_else(
    account: str, release: str, api: Api, plane: ControlPlane
) -> None:
    mine = _as(account, release, api, plane)
    wanted = {
        f"{verb} {resource}"
        for verbs, resource in _ALLOWED.get(account, [])
        for verb in verbs.split()
    }
    probes = {f"{verb} {resource}" for verb in _VERBS for resource in _RESOURCES}
    assert {probe for probe in probes if _may(mine, probe, release)} == wanted & probes
    assert wanted <= probes
    for place in (release, _OTHER, ""):
        for probe in set(_SENSITIVE) - wanted:
            assert not _may(mine, probe, place), f"{account} may {probe} in {place or 'all'}"


@pytest.mark.parametrize("account", _ACCOUNTS)
def test_the_server_lists_no_further_rule(
    account: str, release: str, api: Api, plane: ControlPlane
) -> None:
    """Not what is probed, but all that RBAC grants: a Role that grows is seen here."""
    mine = _as(account, release, api, plane)
    wanted = {
        (verb, resource) for verbs, resource in _ALLOWED.get(account, []) for verb in verbs.split()
    }
    assert _rules(mine, release) == wanted


def test_a_runner_of_another_namespace_has_the_pipelines_rights_in_this_one_only(
    release: str, api: Api, plane: ControlPlane
) -> None:
    runner = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "pipeline-runner"}}
    api.create(runner, _OTHER)
    mine = api.of(plane.client_of(api.token("pipeline-runner", _OTHER)))
    assert _may(mine, "create ray.io/rayjobs", release)
    assert not _may(mine, "create ray.io/rayjobs", _OTHER)
    assert not _may(mine, "get /secrets", release)


def test_the_pipelines_account_does_what_a_step_does(
    release: str, api: Api, plane: ControlPlane
) -> None:
    mine = _as("pipeline", release, api, plane)
    [cluster] = api.list("RayCluster", release)
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "step"},
        "spec": {"entrypoint": "true", "rayClusterSpec": cluster["spec"]},
    }
    mine.create(job, release)
    assert [each["metadata"]["name"] for each in mine.list("RayJob", release)] == ["step"]
    assert mine.get("RayJob", "step", release)["spec"]["entrypoint"] == "true"
    mine.delete("RayJob", "step", release)
    for refused in (
        lambda: mine.get("Secret", "aws", release),
        lambda: mine.create(job, "default"),
        lambda: mine.delete("RayCluster", cluster["metadata"]["name"], release),
    ):
        with pytest.raises(Refused, match="forbidden") as error:
            refused()
        assert error.value.status == 403


def test_the_target_of_steps_finds_all_that_it_needs(
    release: str,
    api: Api,
    plane: ControlPlane,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own checks, by the account; one that has no Role is told what it may not do."""
    results = {}
    for account in ("pipeline", "serving"):
        name = f"{_PREFIX}-{account}"
        kubeconfig = plane.write_kubeconfig(account, api.token(name, release))
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        overrides = [f"rayjob.namespace={release}", "rayjob.image=emberline:0.1.0"]
        spec = load_spec("fire", overrides=overrides, storage=str(tmp_path))
        owner = Owner(release, "train", "0f0e")
        checklist = RayJobTarget(spec.rayjob, owner=owner).check(spec)
        results[account] = {check.name: check for check in checklist.checks}
    judged = ("Kubernetes", "KubeRay", "permissions", "RayJob")
    assert [results["pipeline"][name].passed for name in judged] == [True] * len(judged)
    assert results["serving"]["permissions"].found == (
        "this user may not create rayjobs, get rayjobs, list rayjobs, delete rayjobs, list pods, "
        f"get pods/log, patch rayjobs in {release}; have a Role there allow it, or set "
        "rayjob.namespace to another"
    )


def test_only_who_calls_the_api_server_has_a_token_in_its_pod(release: str, api: Api) -> None:
    """The server itself puts the token into each pod that does not decline it."""
    pods = api.list("Pod", release, **{"app.kubernetes.io/instance": _RELEASE})
    assert pods
    for pod in pods:
        tokens = [each["name"] for each in pod["spec"]["volumes"] if "projected" in each]
        assert tokens == [], pod["metadata"]["name"]
    [reaper] = api.list("CronJob", release, **{"app.kubernetes.io/component": "reaper"})
    template = reaper["spec"]["jobTemplate"]["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
    made = api.create(pod | {"metadata": {"name": "reaper"}}, release, dryRun="All")
    assert [each["name"] for each in made["spec"]["volumes"] if "projected" in each] != []


# Helpers


def _as(account: str, namespace: str, api: Api, plane: ControlPlane) -> Api:
    """The account itself, by a token that the server made for it."""
    return api.of(plane.client_of(api.token(f"{_PREFIX}-{account}", namespace)))


def _may(api: Api, probe: str, namespace: str) -> bool:
    verb, resource = probe.split()
    group, name, *sub = resource.split("/")
    attributes = {"verb": verb, "group": group, "resource": name, "namespace": namespace}
    if sub:
        attributes["subresource"] = sub[0]
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = api.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    return answer["status"]["allowed"]


def _rules(api: Api, namespace: str) -> set[tuple[str, str]]:
    """Verbs and resources, without what every authenticated user may ask about itself."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    found = api.call("POST", path, review)["status"]["resourceRules"]
    return {
        (verb, f"{group}/{resource}")
        for rule in found
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if not resource.startswith("selfsubject")
    }
