"""`emberline pipelines`: compile, submit, schedule and stop pipelines on Kubeflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.options import Config, Json, Overrides, show
from ray_jobs.errors import SpecError

if TYPE_CHECKING:
    from pipelines.compilation import Variant

app = typer.Typer(
    name="pipelines",
    help="Compile pipelines for Kubeflow, run them there, and schedule them.",
    no_args_is_help=True,
)

Of = Annotated[str, typer.Argument(metavar="WORKLOAD", help="e.g. fire.", show_default=False)]
Sweep = Annotated[bool, typer.Option("--sweep", help="The pipeline that sweeps, then trains.")]
Retraining = Annotated[
    bool, typer.Option("--retraining", help="The one that retrains on old and new data.")
]
Promote = Annotated[bool, typer.Option("--promote", help="Ask the gate for what it registers.")]
DeployTo = Annotated[
    str | None,
    typer.Option("--deploy", metavar="TARGET", help="Deploy a new champion: local or sagemaker."),
]


def _variant(
    workload: str, sweep: bool, retraining: bool, promote: bool, deploy: str | None
) -> Variant:
    from pipelines.compilation import Variant
    from ray_jobs.deployments.places import TARGETS

    if deploy is not None and deploy not in TARGETS:
        raise SpecError(f"--deploy {deploy}: it is {' or '.join(TARGETS)}")
    return Variant(workload, sweep, retraining, promote, deploy)


@app.command("compile")
def compile_(
    workload: Annotated[
        str, typer.Argument(metavar="WORKLOAD|all", help="all: those that the project ships.")
    ],
    config: Config = None,
    overrides: Overrides = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder, or a file that ends in .yaml.")
    ] = Path("pipelines/compiled"),
    sweep: Sweep = False,
    retraining: Retraining = False,
    promote: Promote = False,
    deploy: DeployTo = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 7 if a file is not current.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compile a pipeline to the YAML that Kubeflow takes: the same job, the same text."""
    from pipelines import compilation

    if workload == compilation.ALL:
        if config or sweep or retraining or promote or deploy:
            raise SpecError(
                "--config, --sweep, --retraining, --promote and --deploy belong to one workload"
            )
        variants = list(compilation.VARIANTS)
    else:
        variants = [_variant(workload, sweep, retraining, promote, deploy)]
    found = [
        compilation.compiled(one, compilation.described(one, config, overrides or ()))
        for one in variants
    ]
    show((compilation.compare if check else compilation.write)(found, output), as_json)
