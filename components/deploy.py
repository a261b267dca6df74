"""Deploy the champion of a run's model."""

from components.step import step


@step
def deploy(run: str, target: str) -> str:
    """Deploy it where `target` says, once it answers its own example as recorded; returns its URL,
    or its name where it has none."""
    from ray_jobs.deploy import deploy
    from ray_jobs.retrain import model_of
    from ray_jobs.run import Run

    spec = Run.at(run).spec
    deployment = deploy(spec.storage, model_of(spec), target=target, say=print)
    return deployment.url or deployment.name
