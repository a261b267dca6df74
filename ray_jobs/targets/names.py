"""Names of a run at the services that carry it out: valid there, readable, and distinct for
distinct runs.

A name that had to be changed ends in a digest of the run, so it cannot be read back: the run id
itself travels in a tag or in the metadata of the job.
"""

from __future__ import annotations

import hashlib
import json
import re

_DIGEST_LENGTH = 10  # 40 bits
_DIGEST_END = re.compile(rf"-[0-9a-f]{{{_DIGEST_LENGTH}}}")
_MAX_MEMBER = 20
_MAX_RAY = 100  # Ray sets no limit, but a log file is named after the job
_MAX_SAGEMAKER = 63
_MAX_RAYJOB = 47


def sagemaker_name(workload: str, run_id: str, attempt: int = 1, member: str | None = None) -> str:
    """A training job's name: at most 63 of letters, digits and single hyphens between them.

    Args:
        attempt: a name is never free again, so each attempt has one of its own.
        member: the part of the run that the job carries out; None: all of it.

    Source: TrainingJobName in the SageMaker API reference, CreateTrainingJob.
    """
    assert attempt >= 1, attempt
    part = None if member is None and attempt == 1 else (member, attempt)
    return _name(workload, run_id, allowed="A-Za-z0-9", max_length=_MAX_SAGEMAKER, part=part)


def ray_submission_id(workload: str, run_id: str, attempt: int = 1, part: str | None = None) -> str:
    """A Ray job's submission id. Attempts after the first are numbered behind a `~`, which no run
    id can hold.

    Args:
        part: of the run that the job carries out; None: all of it.
    """
    assert attempt >= 1, attempt
    name = _name(
        workload,
        run_id,
        allowed="A-Za-z0-9._",
        max_length=_MAX_RAY,
        part=None if part is None else (part, 1),
    )
    return attempt_name(name, attempt)


def attempt_name(name: str, attempt: int) -> str:
    """The submission id of an attempt at the job that `name` is the first one's of."""
    return name if attempt == 1 else f"{name}~{attempt}"


def rayjob_name(workload: str, run_id: str, part: str | None = None) -> str:
    """A Kubernetes RayJob's name: a DNS-1123 label of at most 47 characters that begins with a
    letter, for the services that KubeRay derives from it must (DNS-1035).

    Args:
        part: of the run that the job carries out; None: all of it.

    Source: the length that KubeRay's validation leaves for its suffixes.
    """
    return _name(
        workload,
        run_id.lower(),
        allowed="a-z0-9",
        max_length=_MAX_RAYJOB,
        of=run_id,
        part=None if part is None else (part, 1),
    )


def _name(
    workload: str,
    run_id: str,
    *,
    allowed: str,
    max_length: int,
    of: str | None = None,
    part: tuple[str | None, int] | None = None,
) -> str:
    """`<workload>-<run_id>` where that is valid, else what can be kept of it and a digest.

    Args:
        allowed: characters of a regular expression's set, beside the hyphen.
        of: the run id as it was given, if it was changed before.
        part: a member and an attempt, which tell this name from that of the run.
    """
    text = f"{workload}-{run_id}"
    name = re.sub(f"[^{allowed}]+", "-", text).strip("-._")
    if not re.match("[A-Za-z]", name):
        name = f"run-{name}".rstrip("-")
    # Behind a workload without hyphens, the first hyphen tells where the run id begins.
    is_unchanged = name == text and of in (None, run_id) and "-" not in workload and part is None
    if is_unchanged and len(name) <= max_length and not _ends_like_a_digest(name):
        return name
    identity = json.dumps([workload, run_id if of is None else of, *(part or ())])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:_DIGEST_LENGTH]
    end = "".join(f"-{word}" for word in (*_words(part, allowed), digest))
    return f"{name[: max_length - len(end)].rstrip('-._')}{end}"


def _words(part: tuple[str | None, int] | None, allowed: str) -> list[str]:
    """What a reader sees of a part: its member's name, as far as there is room, and a number after
    the first attempt."""
    if part is None:
        return []
    member, attempt = part
    name = re.sub(f"[^{allowed}]+", "-", member or "")[:_MAX_MEMBER].strip("-._")
    return [word for word in (name, str(attempt) if attempt > 1 else "") if word]


def _ends_like_a_digest(name: str) -> bool:
    """Such a name could be that of another run, whose name was changed."""
    return _DIGEST_END.fullmatch(name[-_DIGEST_LENGTH - 1 :]) is not None
