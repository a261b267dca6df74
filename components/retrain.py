"""Prepare a retraining."""

from kfp import dsl

from components.step import step


@step
def retrain(
    workload: str,
    model: str,
    data: list,
    storage: str,
    is_due: str,
    spec: dsl.OutputPath(str),  # type: ignore[valid-type] # how KFP spells an output parameter
    run_id: dsl.OutputPath(str),  # type: ignore[valid-type]
    run: dsl.OutputPath(str),  # type: ignore[valid-type]
    dataset: dsl.Output[dsl.Dataset],
) -> str:
    """Put new data behind those of the champion and prepare them; returns whether the gate has
    still to see them: "yes" or "no".

    Args:
        model: its registered name.
        data: paths or URIs of labelled data.
        storage: root of all runs.
        is_due: "no": do nothing, and return "no".
        spec, run_id, run: where to write the job description (YAML), and the run's id and URI.
    """
    from ray_jobs.retrain import attempt, describe

    outputs = {spec: "", run_id: "", run: ""}
    is_new = "no"
    if is_due == "yes":
        found = attempt(describe(workload, data, model=model, storage=storage, say=print))
        dataset.uri = f"{storage}/{found.data.path}"
        dataset.metadata["digest"] = found.data.digest
        dataset.metadata["rows added"] = found.data.num_added
        dataset.metadata["rows left out, as of val or test"] = found.data.num_withheld
        uri = f"{found.spec.storage}/{workload}/{found.run_id}"
        outputs = {spec: found.spec.to_yaml(), run_id: found.run_id, run: uri}
        is_new = "yes" if found.judged is None else "no"
        if found.judged is not None:
            print(found.judged)
    for path, text in outputs.items():
        with open(path, "w") as file:
            file.write(text)
    return is_new
