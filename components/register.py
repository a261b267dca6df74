"""Tell MLflow what was trained."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def register(run: str, model: dsl.Output[dsl.Model]) -> str:
    """Log the run, register the model and finish the result; returns the model's URI, or nothing
    if untracked."""
    from ray_jobs.register import register
    from ray_jobs.run import Run

    registered = register(Run.at(run)).model
    if registered is None:
        return ""
    model.uri = registered.uri
    model.metadata["version"] = registered.version
    return registered.uri
