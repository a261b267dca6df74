"""A job description as the request that starts it on SageMaker: the input of CreateTrainingJob.

The image is this project's own and is started by `python -m ray_jobs.container train`, so
no entry point of SageMaker's toolkits stands between the request and the job. With one instance the
run's folder is what SageMaker keeps in step with S3 (CheckpointConfig); several instances, or jobs
of one run, need a folder that all of them see, and use S3 itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from ray_jobs.container import ML_DIR, PART, RUN_ID, SPEC_PARTS, STORAGE
from ray_jobs.container_log import member_pattern, score_pattern
from ray_jobs.errors import SpecError
from ray_jobs.owners import Owner, this_step
from ray_jobs.sections import JobSpec
from ray_jobs.targets.sagemaker.spec import NUM_OWN_TAGS, SageMakerSpec

if TYPE_CHECKING:
    from botocore.model import ServiceModel, Shape

TAG_PREFIX = "emberline:"
PROJECT_TAG, WORKLOAD_TAG, RUN_ID_TAG, STORAGE_TAG, OWNER_TAG, PART_TAG = (
    f"{TAG_PREFIX}{key}" for key in ("project", "workload", "run-id", "storage", "owner", "part")
)
PROJECT = "emberline"
# The limits of CreateTrainingJob's HyperParameterValue and MetricDefinitionList.
_MAX_VALUE = 2500
_MAX_METRICS = 40
_MAX_PARTS = 90  # of a hundred hyperparameters
_ROOT = re.compile(r"[\w .:/=+\-@]{1,256}")
# Volumes of instances with NVMe storage of their own cannot be encrypted with a key of the user's:
# Amazon SageMaker AI API Reference, "ResourceConfig", VolumeKmsKeyId.
_LOCAL_STORAGE = re.compile(
    r"ml\.([a-z0-9-]*\dg?i?d[a-z]*|g5|g6|g6e|gr6|p4de|p5|p5e|p5en|trn1n?)\."
)


def training_job_request(
    spec: JobSpec,
    sagemaker: SageMakerSpec,
    *,
    run_id: str,
    name: str,
    owner: str,
    channels: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    max_run_s: int | None = None,
    part: str | None = None,
) -> dict[str, Any]:
    """The input of CreateTrainingJob.

    Args:
        spec: what to run.
        sagemaker: on which instances.
        run_id: of the run whose folder lies under `storage_root`.
        name: of the training job, from `names.sagemaker_name`.
        owner: who started it; a tag.
        channels: name -> S3 prefix of what is put under the input folder: `data` for `data.path`,
            `data_0`, `data_1`, ... for `data.sources`. None: the job reads `data.path` itself.
        environment: variables of the container, such as MLFLOW_TRACKING_URI. Everyone who may
            describe the job reads them: no secrets.
        max_run_s: where the budget ends before `sagemaker.max_run_s`.
        part: of the run that the job carries out: a member, or `COMBINE`. None: all of it.

    Raises:
        SpecError: the description lacks what SageMaker needs, or is too long.
    """
    root = storage_root(spec, sagemaker)
    image, role = _needed(sagemaker)
    folder = f"{spec.workload}/{run_id}"
    request: dict[str, Any] = {
        "TrainingJobName": name,
        "RoleArn": role,
        "AlgorithmSpecification": {
            "TrainingImage": image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python", "-m", "ray_jobs.container"],
            "ContainerArguments": ["train"],
            "MetricDefinitions": metric_definitions(spec),
        },
        "HyperParameters": _hyperparameters(spec, run_id),
        "OutputDataConfig": _with_key(
            {"S3OutputPath": output_uri(root, spec.workload, run_id)}, "KmsKeyId", sagemaker.kms_key
        ),
        "ResourceConfig": _resources(sagemaker),
        "StoppingCondition": _stopping(sagemaker, max_run_s),
        "RetryStrategy": {"MaximumRetryAttempts": sagemaker.max_attempts},
        "EnableManagedSpotTraining": sagemaker.spot,
        "Tags": _tags(spec, sagemaker, run_id, owner, root, part),
    }
    if part is not None:
        request["HyperParameters"][PART] = part
    if part is not None or sagemaker.instance_count > 1:
        request["HyperParameters"][STORAGE] = root
    else:
        request["CheckpointConfig"] = {
            "S3Uri": f"{root}/{folder}",
            "LocalPath": f"{ML_DIR}/checkpoints/{folder}",
        }
    if sagemaker.vpc is not None:
        request["VpcConfig"] = {
            "Subnets": sagemaker.vpc.subnets,
            "SecurityGroupIds": sagemaker.vpc.security_group_ids,
        }
    if channels:
        request["InputDataConfig"] = [_channel(key, uri) for key, uri in channels.items()]
    if environment:
        request["Environment"] = dict(environment)
    return request


def storage_root(spec: JobSpec, sagemaker: SageMakerSpec) -> str:
    """The root URI of the runs, on S3.

    Raises:
        SpecError: neither `storage` nor `sagemaker.bucket` names a bucket, or not in letters that
            a tag takes.
    """
    if spec.storage.startswith("s3://"):
        root = spec.storage.rstrip("/")
    elif sagemaker.bucket:
        root = "/".join(filter(None, (f"s3://{sagemaker.bucket}", sagemaker.prefix)))
    else:
        raise SpecError(
            f"target sagemaker cannot keep a run in storage {spec.storage!r}; give --storage "
            "s3://<bucket>/<prefix>, or set sagemaker.bucket"
        )
    if not _ROOT.fullmatch(root):  # it is a tag of each job, by which another command finds the run
        raise SpecError(
            f"storage {root!r}: use at most 256 letters, digits, spaces and _.:/=+-@, which a tag "
            "of a training job can hold"
        )
    return root


def output_uri(root: str, workload: str, run_id: str) -> str:
    """Where SageMaker puts a run's model.tar.gz, below the name of its training job."""
    return f"{root}/{workload}/{run_id}/sagemaker"


def metric_definitions(spec: JobSpec) -> list[dict[str, str]]:
    """What SageMaker reads from the log: the scores of the whole, then each member's objective."""
    names = [spec.objective.metric, *(m for m in spec.METRICS if m != spec.objective.metric)]
    scores = [
        {"Name": f"{split}:{metric}", "Regex": score_pattern(split, metric)}
        for metric in names
        for split in ("val", "test")
    ]
    members = [
        {
            "Name": f"{member}:{spec.objective.metric}",
            "Regex": member_pattern(member, spec.objective.metric),
        }
        for member in spec.families()
    ]
    return (scores + members)[:_MAX_METRICS]


def _needed(sagemaker: SageMakerSpec) -> tuple[str, str]:
    if sagemaker.image_uri is None:
        raise SpecError(
            "target sagemaker needs an image: build the Dockerfile, push it to ECR, and set "
            "sagemaker.image_uri"
        )
    if sagemaker.role_arn is None:
        raise SpecError(
            "target sagemaker needs a role that trusts sagemaker.amazonaws.com; set "
            "sagemaker.role_arn"
        )
    return sagemaker.image_uri, sagemaker.role_arn


def _hyperparameters(spec: JobSpec, run_id: str) -> dict[str, str]:
    # A value has no line breaks (its pattern is `.*`) and a limited length: JSON, in parts.
    text = json.dumps(spec.model_dump(mode="json"), separators=(",", ":"))
    parts = [text[start : start + _MAX_VALUE] for start in range(0, len(text), _MAX_VALUE)]
    if len(parts) > _MAX_PARTS:
        raise SpecError(
            f"the job description has {len(text):,} characters; SageMaker takes "
            f"{_MAX_PARTS * _MAX_VALUE:,}. Shorten its lists, such as data.feature_columns"
        )
    found = {SPEC_PARTS.format(number): part for number, part in enumerate(parts)}
    found[RUN_ID] = run_id
    return found


def _resources(sagemaker: SageMakerSpec) -> dict[str, Any]:
    found: dict[str, Any] = {
        "InstanceType": sagemaker.instance_type,
        "InstanceCount": sagemaker.instance_count,
        "VolumeSizeInGB": sagemaker.volume_gb,
    }
    if sagemaker.keep_alive_s:
        found["KeepAlivePeriodInSeconds"] = sagemaker.keep_alive_s
    if not has_local_storage(sagemaker.instance_type):
        _with_key(found, "VolumeKmsKeyId", sagemaker.kms_key)
    return found


def has_local_storage(instance_type: str) -> bool:
    """Whether the instance keeps its files on NVMe storage of its own."""
    return _LOCAL_STORAGE.match(instance_type) is not None


def _with_key(config: dict[str, Any], field: str, key: str | None) -> dict[str, Any]:
    if key is not None:
        config[field] = key
    return config


def _stopping(sagemaker: SageMakerSpec, max_run_s: int | None) -> dict[str, int]:
    found = {"MaxRuntimeInSeconds": min(sagemaker.max_run_s, max_run_s or sagemaker.max_run_s)}
    if sagemaker.wait_s is not None:
        found["MaxWaitTimeInSeconds"] = sagemaker.wait_s
    return found


def _tags(
    spec: JobSpec, sagemaker: SageMakerSpec, run_id: str, owner: str, root: str, part: str | None
) -> list[dict[str, str]]:
    own = {
        PROJECT_TAG: PROJECT,
        WORKLOAD_TAG: spec.workload,
        RUN_ID_TAG: run_id,
        STORAGE_TAG: root,
        OWNER_TAG: re.sub(r"[^\w .:/=+\-@]", "_", owner)[:256],
        PART_TAG: part or "all",
    }
    step = this_step()
    own |= owner_tags(step) if step is not None else {}
    assert len(own) <= NUM_OWN_TAGS
    return [{"Key": key, "Value": value} for key, value in (own | sagemaker.tags).items()]


def owner_tags(owner: Owner) -> dict[str, str]:
    """Of the pod of the step that starts a job, or attaches to it."""
    return {f"{TAG_PREFIX}{key}": value for key, value in owner.fields().items()}


def _channel(name: str, uri: str) -> dict[str, Any]:
    return {
        "ChannelName": name,
        "InputMode": "File",
        "DataSource": {
            "S3DataSource": {
                "S3DataType": "S3Prefix",
                "S3Uri": uri,
                "S3DataDistributionType": "FullyReplicated",
            }
        },
    }


# What the service would refuse


def request_faults(request: Mapping[str, Any], operation: str = "CreateTrainingJob") -> list[str]:
    """What botocore's model of the service says against a request; nothing is sent.

    A client checks no pattern, no choice and no greatest length before it sends: they are checked
    here, from the same model.
    """
    from botocore.validate import ParamValidator

    shape = _service_model().operation_model(operation).input_shape
    assert shape is not None, operation
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        return report.generate_report().splitlines()
    return list(_faults(request, shape, ""))


@cache  # it takes a tenth of a second to read
def _service_model() -> ServiceModel:
    from botocore.session import get_session

    return get_session().get_service_model("sagemaker")


def _faults(value: Any, shape: Shape, path: str) -> Iterator[str]:
    limits: Mapping[str, Any] = shape.metadata
    if shape.type_name == "structure":
        for name, inner in value.items():
            yield from _faults(inner, shape.members[name], f"{path}.{name}".lstrip("."))
        return
    size = value if isinstance(value, int | float) else len(value)
    if not limits.get("min", size) <= size <= limits.get("max", size):
        least, most = limits.get("min", "any"), limits.get("max", "any")
        yield f"{path}: {size} is not within {least} and {most}"
    if shape.type_name == "list":
        for number, inner in enumerate(value):
            yield from _faults(inner, shape.member, f"{path}[{number}]")
    elif shape.type_name == "map":
        for key, inner in value.items():
            yield from _faults(key, shape.key, f"{path}.{key} (key)")
            yield from _faults(inner, shape.value, f"{path}.{key}")
    elif shape.type_name == "string":
        yield from _text_faults(value, limits, path)


def _text_faults(value: str, limits: Mapping[str, Any], path: str) -> Iterator[str]:
    if limits.get("enum") and value not in limits["enum"]:
        yield f"{path}: {value!r} is not one that SageMaker knows"
    pattern = limits.get("pattern")
    if pattern and not re.fullmatch(_as_python(pattern), value):
        yield f"{path}: {value!r} does not match {pattern}"


def _as_python(pattern: str) -> str:
    """The model's patterns are Java's: the classes that Python writes otherwise."""
    for theirs, ours in (
        (r"\p{L}", r"\w"),  # with digits and _, which stand beside it wherever it is used
        (r"\p{Z}", " "),
        (r"\p{N}", r"\d"),
        (r"\p{Alnum}", "a-zA-Z0-9"),
    ):
        pattern = pattern.replace(theirs, ours)
    return pattern
