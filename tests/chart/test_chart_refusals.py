"""Values that do not go together: each is refused with a sentence that says what to set."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest
from rendered_chart import CHART, NAMESPACE, render, values_of

KEYS = {"signing": {"publicKeys": values_of("canary")["signing"]["publicKeys"]}}
RETRAIN = {"workload": "fire", "schedule": "@daily", "data": ["s3://new"]}
S3 = {"storage": {"uri": "s3://models"}}

_REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"mlflow": {"trackingUri": "https://mlflow.example.com"}},
        "mlflow.enabled runs a server and mlflow.trackingUri names another: set "
        "mlflow.enabled=false, or leave mlflow.trackingUri empty",
    ),
    (
        {"mlflow": {"auth": {"existingSecret": ""}}},
        "mlflow.auth.enabled needs a Secret: set mlflow.auth.existingSecret to one with "
        "admin-username, admin-password and flask-secret-key",
    ),
    (
        {"mlflow": {"database": {"host": "db", "existingSecret": "db"}}},
        "postgresql.enabled runs a database and mlflow.database.host names another: set "
        "postgresql.enabled=false, or leave mlflow.database.host empty",
    ),
    (
        {"postgresql": {"existingSecret": ""}},
        "postgresql.enabled needs a Secret: set postgresql.existingSecret to one with password",
    ),
    (
        {"postgresql": {"enabled": False}},
        "mlflow.enabled needs a database: set postgresql.enabled=true, or mlflow.database.host "
        "and mlflow.database.existingSecret",
    ),
    (
        {"postgresql": {"enabled": False}, "mlflow": {"database": {"host": "db"}}},
        "mlflow.database.host needs a Secret: set mlflow.database.existingSecret to one with "
        "password",
    ),
    (
        {"mlflow": {"enabled": False, "host": "mlflow.example.com"}},
        "mlflow.host is that of the server that the chart runs: set mlflow.enabled=true, or leave "
        "mlflow.host empty",
    ),
    (
        {"mlflow": {"enabled": False}, **KEYS, "serving": {"models": [{"name": "fire"}]}},
        "serving and retrain need MLflow: set mlflow.enabled=true, or mlflow.trackingUri to a "
        "server elsewhere",
    ),
    (
        {
            "mlflow": {"auth": {"enabled": False}, "host": "m.example.com"},
            "ingress": {"enabled": True},
        },
        "mlflow.host would show MLflow to anyone: set mlflow.auth.enabled=true, or leave "
        "mlflow.host empty",
    ),
    (
        {
            "mlflow": {"host": "m.example.com"},
            "ingress": {"enabled": True},
            "gateway": {"enabled": True, "parentRefs": [{"name": "public"}]},
        },
        "ingress.enabled and gateway.enabled are two ways to the same hosts: set one of them to "
        "false",
    ),
    (
        {"ingress": {"enabled": True}},
        "ingress.enabled and gateway.enabled need a host: set mlflow.host, or host of an item of "
        "serving.models",
    ),
    (
        {
            **KEYS,
            "ingress": {"enabled": True},
            "mlflow": {"host": "a.example.com"},
            "serving": {"models": [{"name": "fire", "host": "a.example.com"}]},
        },
        "a host has one backend, and one of a.example.com, a.example.com stands twice: set "
        "another mlflow.host, or host of an item of serving.models",
    ),
    (
        {"mlflow": {"host": "m.example.com"}, "gateway": {"enabled": True}},
        "gateway.enabled needs a Gateway: set gateway.parentRefs to [{name: ...}]",
    ),
    (
        {"serving": {"models": [{"name": "fire"}]}},
        "serving and webhook take only models that a key you trust has signed: set "
        "signing.publicKeys to {name.pub: PEM}",
    ),
    (
        {"serving": {"recordShare": 0.1}},
        "serving.recordShare needs an object store for the records: set storage.uri to "
        "s3://bucket/prefix",
    ),
    (
        {
            **KEYS,
            "serving": {
                "models": [{"name": "fire", "autoscaling": {"enabled": True, "maxReplicas": 1}}]
            },
        },
        "the autoscaling of fire has minReplicas 2 over maxReplicas 1: set "
        "serving.autoscaling.maxReplicas to 2 or more",
    ),
    (
        {**KEYS, "serving": {"models": [{"name": "fire", "canary": {"weight": 10}}]}},
        "the canary of fire needs a version: set canary.version of this item of serving.models",
    ),
    (
        {
            **KEYS,
            "serving": {
                "models": [{"name": "fire", "version": 7, "canary": {"version": "7", "weight": 10}}]
            },
        },
        "the canary of fire is the version that is served already: set canary.version to another "
        "than 7",
    ),
    (
        {
            **KEYS,
            "mlflow": {"host": "m.example.com"},
            "gateway": {"enabled": True, "parentRefs": [{"name": "public"}]},
            "serving": {"models": [{"name": "fire", "canary": {"version": 8, "weight": 10}}]},
        },
        "the canary of fire is weighed by an HTTPRoute: set host of this item of serving.models",
    ),
    (
        {
            **KEYS,
            "serving": {
                "autoscaling": {"enabled": True},
                "models": [{"name": "fire", "canary": {"version": 8, "weight": 10}}],
            },
        },
        "the canary of fire is weighed by pods, whose number autoscaling changes: set "
        "gateway.enabled=true, or autoscaling.enabled=false",
    ),
    (
        {
            **KEYS,
            "serving": {"models": [{"name": "fire", "canary": {"version": 8, "weight": 10}}]},
        },
        "the canary of fire cannot have 10% of 2 pods: set replicas to 10, or gateway.enabled=true",
    ),
    (
        {
            **KEYS,
            "serving": {
                "models": [{"name": "fire", "replicas": 1, "canary": {"version": 8, "weight": 99}}]
            },
        },
        "the canary of fire cannot have 99% of 1 pods: set replicas to 100, or "
        "gateway.enabled=true",
    ),
    (
        {**KEYS, "serving": {"models": [{"name": "fire_1"}, {"name": "fire-1"}]}},
        "serving.models has two items of one name (fire-1, fire-1): set the name of each to "
        "another",
    ),
    (
        {"ray": {"enabled": True, "gcsFaultTolerance": {"enabled": True, "existingSecret": "r"}}},
        "ray.gcsFaultTolerance.enabled needs a Redis: set ray.gcsFaultTolerance.redisAddress to "
        "HOST:PORT",
    ),
    (
        {
            "ray": {
                "enabled": True,
                "gcsFaultTolerance": {"enabled": True, "redisAddress": "redis:6379"},
            }
        },
        "ray.gcsFaultTolerance.enabled needs a Secret: set ray.gcsFaultTolerance.existingSecret to "
        "one with password",
    ),
    (
        {"ray": {"enabled": True}, "kueue": {"queueName": "research"}},
        "Kueue admits a RayCluster of a fixed size: set ray.autoscaler.enabled=false, or leave "
        "kueue.queueName empty",
    ),
    (
        {"ray": {"enabled": True, "workerGroups": {"cpu": {"minReplicas": 9}}}},
        "ray.workerGroups.cpu has minReplicas over maxReplicas: set "
        "ray.workerGroups.cpu.maxReplicas to 9 or more",
    ),
    (
        {"ray": {"enabled": True, "autoscaler": {"enabled": False}}},
        "ray.workerGroups.cpu would never have a pod: set ray.autoscaler.enabled=true, or "
        "ray.workerGroups.cpu.minReplicas to 1 or more",
    ),
    (
        {"monitoring": {"enabled": True}},
        "monitoring.enabled has nothing to read: set serving.models, ray.enabled=true or "
        "pipelines.enabled=true, or monitoring.enabled=false",
    ),
    (
        {"monitoring": {"dashboard": {"enabled": True}}},
        "monitoring.dashboard.enabled shows what is read by monitoring.enabled: set "
        "monitoring.enabled=true, or monitoring.dashboard.enabled=false",
    ),
    (
        {"reaper": {"sagemaker": True}, "storage": {"region": "eu-west-1"}},
        "reaper.sagemaker is a part of the reaper's work: set reaper.enabled=true, or "
        "reaper.sagemaker=false",
    ),
    (
        {"reaper": {"enabled": True, "sagemaker": True}},
        "reaper.sagemaker looks in one region of AWS: set storage.region to it, such as eu-west-1",
    ),
    (
        {"reaper": {"enabled": True, "namespaces": ["kubeflow", NAMESPACE]}},
        "reaper.namespaces are those beside the release's, which is always looked at: take ns out "
        "of reaper.namespaces",
    ),
    (
        {
            "mlflow": {"enabled": False, "trackingUri": "https://mlflow.example.com"},
            **KEYS,
            "webhook": {"enabled": True, "models": ["fire"]},
        },
        "webhook.enabled is for the server that the chart runs: set mlflow.enabled=true, or "
        "webhook.enabled=false and poll with emberline deploy --follow",
    ),
    (
        {**KEYS, **S3, "webhook": {"enabled": True, "existingSecret": "webhook"}},
        "webhook.enabled needs models: set webhook.models to [fire]",
    ),
    (
        {**KEYS, **S3, "webhook": {"enabled": True, "models": ["fire"]}},
        "webhook.enabled needs a Secret: set webhook.existingSecret to one with secret",
    ),
    (
        {**KEYS, "webhook": {"enabled": True, "models": ["fire"], "existingSecret": "webhook"}},
        "webhook.enabled needs an object store for the models of SageMaker: set storage.uri to "
        "s3://bucket/prefix",
    ),
    (
        {
            **KEYS,
            **S3,
            "mlflow": {"auth": {"enabled": False, "existingSecret": ""}},
            "webhook": {"enabled": True, "models": ["fire"], "existingSecret": "webhook"},
        },
        "webhook.enabled needs a key that MLflow keeps the secret under: set "
        "mlflow.auth.existingSecret to a Secret with webhook-encryption-key",
    ),
    (
        {"retrain": {"jobs": [RETRAIN]}},
        "retrain.jobs need an object store for runs and live records: set storage.uri to "
        "s3://bucket/prefix",
    ),
    (
        {
            **S3,
            "retrain": {"jobs": [RETRAIN]},
        },
        "retrain.jobs sign the models that they register: set signing.existingSecret to a Secret "
        "with signing.pem",
    ),
    (
        {
            **S3,
            "signing": {"existingSecret": "signing"},
            "retrain": {
                "jobs": [
                    {"workload": "fire", "schedule": "@daily", "data": ["s3://new"], "onRay": True}
                ]
            },
        },
        "retraining fire on Ray needs the RayCluster: set ray.enabled=true, or onRay=false of this "
        "item of retrain.jobs",
    ),
    (
        {
            **S3,
            "signing": {"existingSecret": "signing"},
            "retrain": {
                "jobs": [
                    {"workload": "fire", "schedule": "@daily", "data": ["s3://a"]},
                    {"workload": "fire", "schedule": "@weekly", "data": ["s3://b"]},
                ]
            },
        },
        "retrain.jobs has two items of one workload (fire, fire): set one, with all its data",
    ),
]


@pytest.mark.parametrize(("values", "sentence"), _REFUSED, ids=[text[:45] for _, text in _REFUSED])
def test_values_that_do_not_go_together_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(helm_python.HelmRenderError) as refused:
        render(values)
    assert str(refused.value).endswith(sentence)


def test_every_refusal_is_tested() -> None:
    checks = (CHART / "templates" / "checks.yaml").read_text(encoding="utf-8")
    assert checks.count("{{- fail ") == len({text for _, text in _REFUSED}) - 1  # one has two cases
