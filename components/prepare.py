"""Prepare the data of a run."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def prepare(
    spec: str,
    run_id: str,
    run: dsl.OutputPath(str),  # type: ignore[valid-type] # how KFP spells an output parameter
    dataset: dsl.Output[dsl.Dataset],
) -> list:
    """Make the run and its dataset; returns the URI of each member to train, longest first.

    Args:
        spec: the resolved job description, YAML.
        run_id: of a new run, or of one to take up again.
        run: where to write the run's URI, which the later steps take.
    """
    import yaml

    from ray_jobs.members import longest_first
    from ray_jobs.prepare import prepare
    from ray_jobs.run import Run
    from ray_jobs.spec import parse_spec

    this: Run = Run.create(parse_spec(yaml.safe_load(spec), source="spec"), run_id)
    summary = prepare(this)
    dataset.uri = f"{this.storage.uri}/{summary.path}"
    dataset.metadata["digest"] = summary.digest
    for split, part in summary.splits.items():
        dataset.metadata[f"{split}_rows"] = part.num_rows
    with open(run, "w") as file:
        file.write(this.uri)
    return [f"{this.uri}/checkpoints/{name}" for name in longest_first(this.spec, summary)]
