"""Prepare the data of a run."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def prepare(spec: str, run_id: str, dataset: dsl.Output[dsl.Dataset]) -> str:
    """Make the run and its dataset; returns the run's URI.

    Args:
        spec: the resolved job description, YAML.
        run_id: of a new run, or of one to take up again.
    """
    import yaml

    from ray_jobs.prepare import prepare
    from ray_jobs.run import Run
    from ray_jobs.spec import parse_spec

    run = Run.create(parse_spec(yaml.safe_load(spec), source="spec"), run_id)
    summary = prepare(run)
    dataset.uri = f"{run.storage.uri}/{summary.path}"
    dataset.metadata["digest"] = summary.digest
    for split, part in summary.splits.items():
        dataset.metadata[f"{split}_rows"] = part.num_rows
    return run.uri
