"""Tell MLflow what was trained, and write the report."""

from kfp import dsl

from components.step import step


@step
def register(run: str, model: dsl.Output[dsl.Model], report: dsl.Output[dsl.HTML]) -> str:
    """Log the run, register the model and finish the result; returns the model's URI, "" if it is
    not tracked."""
    from ray_jobs.register import register
    from ray_jobs.run import REPORT, Run

    this = Run.at(run)
    registered = register(this).model
    with open(report.path, "wb") as file:
        file.write(this.storage.read_bytes(this.path(REPORT)))
    if registered is None:
        return ""
    model.uri = registered.uri
    model.metadata["version"] = registered.version
    return registered.uri
