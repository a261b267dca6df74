"""Read the machine logs of a run."""

from kfp import dsl

from components.step import step


@step
def read_logs(spec: str, run_id: str, pipeline_run: str, dataset: dsl.Output[dsl.Dataset]) -> str:
    """Make the run and its dataset of windows; returns the run's URI.

    Args:
        spec: the resolved job description, YAML.
        run_id: of a new run, or of one to take up again; "": as `pipeline_run`.
        pipeline_run: the id of the pipeline's own run, which differs for each of a schedule's.
    """
    import yaml

    from ray_jobs.prepare import prepare
    from ray_jobs.run import Run
    from ray_jobs.spec import parse_spec

    this: Run = Run.create(parse_spec(yaml.safe_load(spec), source="spec"), run_id or pipeline_run)
    summary = prepare(this)
    dataset.uri = f"{this.storage.uri}/{summary.path}"
    dataset.metadata["digest"] = summary.digest
    for split, part in summary.splits.items():
        dataset.metadata[f"{split}_windows"] = part.num_rows
    leaks = [leak.column for leak in summary.leakage.columns if leak.refused]
    dataset.metadata["columns left out as leaks"] = ", ".join(leaks)
    return this.uri_with(summary.digest)
