"""Look whether live data have drifted from what the champion was trained on."""

from kfp import dsl

from components.step import step


@step
def drift(model: str, storage: str, on: str, since: str, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Whether a retraining is due: "yes" or "no".

    Args:
        on: `always`, or `drift`: only if there is some.
        since: of the requests that are looked at: a span such as `7d`, or a time; "": of all.
    """
    if on == "always":
        return "yes"
    if on != "drift":
        from ray_jobs.errors import SpecError

        raise SpecError(f"on={on!r}: it is always or drift")
    from ray_jobs.drift import measure, parse_since
    from ray_jobs.storage import Storage

    status = measure(Storage(storage), model, since=parse_since(since) if since else None).status
    metrics.log_metric("drift", status)
    return "yes" if status == "drift" else "no"
