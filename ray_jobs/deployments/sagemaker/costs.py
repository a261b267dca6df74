"""What an endpoint costs for as long as it is there."""

from __future__ import annotations

from ray_jobs.deployments.base import Costing
from ray_jobs.deployments.sagemaker.endpoints import Endpoint
from ray_jobs.deployments.sagemaker.parts import Config
from ray_jobs.targets.sagemaker.pricing import TABLE, hosting_price


def endpoint_costs(
    endpoint: Endpoint, config: Config, region: str, usd_per_hour: float | None
) -> tuple[Costing, ...]:
    """The instances of each variant, as many as there are now.

    Args:
        usd_per_hour: of one instance, where the description says it.
    """
    if endpoint.status == "FAILED":  # it has no instances
        return ()
    found = []
    for variant in config.variants:
        name, kind = variant["VariantName"], variant["InstanceType"]
        number = endpoint.num_instances.get(name, variant["InitialInstanceCount"])
        resource = f"endpoint {endpoint.name}, {name}: {number} x {kind}"
        price = hosting_price(kind, region, usd_per_hour)
        if price is None:
            note = (
                f"{TABLE.name} has none for hosting in {region}; set "
                "deployment.sagemaker.usd_per_hour to what AWS charges you"
            )
            found.append(Costing(resource, None, note))
        else:
            found.append(Costing(resource, number * price.usd_per_hour, price.note))
    capture = config.content.get("DataCaptureConfig")
    if capture and capture.get("EnableCapture"):
        what = f"data capture of {capture['InitialSamplingPercentage']} % of the requests"
        note = f"what S3 charges for what is stored below {capture['DestinationS3Uri']}"
        found.append(Costing(f"endpoint {endpoint.name}: {what}", None, note))
    return tuple(found)
