"""Ask the promotion gate for the model of a run."""

from kfp import dsl

from components.step import step


@step
def promote(
    run: str,
    once_for_data: bool,
    reasons: dsl.OutputPath(str),  # type: ignore[valid-type] # how KFP spells an output parameter
    rules: dsl.Output[dsl.Markdown],
) -> str:
    """Make the run's version the champion if the gate lets it; returns promoted, unchanged or
    refused. A refusal does not fail this step, for KFP would not show the table; `gate` does.

    Args:
        once_for_data: ask the gate once for the same data, as a retraining does.
        reasons: where to write why it is refused, or nothing.
        rules: every rule, what was found and the verdict.
    """
    from ray_jobs.retrain import judge

    promotion = judge(run, once_for_data=once_for_data)
    name = f"version {promotion.version} of {promotion.model}"
    broken = [f"{one.rule}: {one.why}" for one in promotion.verdicts if not one.passed]
    refused = promotion.outcome == "refused"
    why = f"{name} is refused. {'; '.join(broken) or 'It was refused before'}"
    lines = [f"# {name}: {promotion.outcome}", "", "| rule | found | limit | verdict | |"]
    lines.append("|---|---|---|---|---|")
    for one in promotion.verdicts:
        said = "passed" if one.passed else "**refused**"
        cells = [cell.replace("|", r"\|") for cell in (one.rule, one.value, one.limit, said)]
        lines.append(f"| {' | '.join(cells)} | {one.why.replace('|', chr(92) + '|')} |")
    with open(rules.path, "w") as file:
        file.write("\n".join(lines) + "\n")
    with open(reasons, "w") as file:
        file.write(why if refused else "")
    return promotion.outcome
