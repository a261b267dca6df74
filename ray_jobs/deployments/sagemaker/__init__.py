"""Models behind endpoints of SageMaker."""

from ray_jobs.deployments.sagemaker.deployer import SageMakerDeployer

__all__ = ["SageMakerDeployer"]
