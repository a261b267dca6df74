"""What a job description says about SageMaker endpoints: the section `deployment.sagemaker`."""

from __future__ import annotations

from ray_jobs.section import Section


class EndpointSpec(Section):
    """The instances of an endpoint. Role, image, region, VPC and tags are those of the section
    `sagemaker`."""

    instance_type: str = "ml.m5.large"
