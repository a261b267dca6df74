from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.owners import KEYS, Owner, cluster_id, parse_owner, this_step

KFP = {"KFP_POD_NAME": "train-1", "KFP_POD_UID": "0a-1b", "NAMESPACE": "kubeflow"}


def test_a_step_of_kubeflow_knows_its_pod() -> None:
    owner = this_step({**KFP, "EMBERLINE_PIPELINE_RUN": "run-7"})
    assert owner == Owner("kubeflow", "train-1", "0a-1b", kfp_run="run-7")
    assert str(owner) == "kubeflow/train-1"


def test_a_pod_may_say_it_itself() -> None:
    own = {"EMBERLINE_POD_NAME": "mine", "EMBERLINE_POD_NAMESPACE": "jobs"}
    assert this_step({**KFP, **own}) == Owner("jobs", "mine", "0a-1b")


@pytest.mark.parametrize("missing", ["KFP_POD_NAME", "NAMESPACE"])
def test_elsewhere_there_is_none(missing: str) -> None:
    assert this_step({key: value for key, value in KFP.items() if key != missing}) is None


TEXTS = st.none() | st.text(max_size=70) | st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True)


@given(st.dictionaries(st.sampled_from([f"p.{key}" for key in KEYS]), TEXTS | st.integers()))
def test_what_is_read_back_is_an_owner_that_can_be_asked_for(fields: dict[str, Any]) -> None:
    owner = parse_owner(fields, "p.")
    if owner is None:
        return
    assert "/" not in owner.namespace + owner.pod
    written = {f"p.{key}": value for key, value in owner.fields().items()}
    assert parse_owner(written, "p.") == owner


def test_a_path_is_no_owner() -> None:
    fields = {"owner-namespace": "jobs", "owner-pod": "../secrets/aws"}
    assert parse_owner(fields, "") is None


def test_clusters_are_told_apart_by_their_authority(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    second.write_text("-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n")
    assert cluster_id(first) != cluster_id(second)
    second.write_text(first.read_text() + "\n")
    assert cluster_id(first) == cluster_id(second)
    assert cluster_id(tmp_path / "none") is None
