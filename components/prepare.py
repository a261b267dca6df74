"""Prepare the data of a run."""

from kfp import dsl

from components.step import step


@step
def prepare(
    spec: str,
    run_id: str,
    pipeline_run: str,
    run: dsl.OutputPath(str),  # type: ignore[valid-type] # how KFP spells an output parameter
    dataset: dsl.Output[dsl.Dataset],
) -> list:
    """Make the run and its dataset; returns the URI of each member to train, longest first.

    Args:
        spec: the resolved job description, YAML.
        run_id: of a new run, or of one to take up again; "": as `pipeline_run`.
        pipeline_run: the id of the pipeline's own run, which differs for each of a schedule's.
        run: where to write the run's URI, which the later steps take.
    """
    import yaml

    from ray_jobs.members import longest_first
    from ray_jobs.prepare import prepare
    from ray_jobs.run import Run
    from ray_jobs.spec import parse_spec

    this: Run = Run.create(parse_spec(yaml.safe_load(spec), source="spec"), run_id or pipeline_run)
    summary = prepare(this)
    dataset.uri = f"{this.storage.uri}/{summary.path}"
    dataset.metadata["digest"] = summary.digest
    for split, part in summary.splits.items():
        dataset.metadata[f"{split}_rows"] = part.num_rows
    uri = this.uri_with(summary.digest)
    with open(run, "w") as file:
        file.write(uri)
    return [f"{uri}/checkpoints/{name}" for name in longest_first(this.spec, summary)]
