"""Step: what makes a function a component, and what carries it out in its container."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Mapping
from typing import Any

from components import IMAGE

_EXECUTOR = "python3 -m kfp.dsl.executor_main"


def step(function: Callable[..., Any]) -> Any:
    """A component whose process ends with the exit code of the function's error, and whose retries
    end at once where they will not help; see `ray_jobs.attempts`."""
    from kfp import dsl

    made = dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)(
        function
    )
    command = made.component_spec.implementation.container.command
    (at,) = (index for index, part in enumerate(command) if _EXECUTOR in part)
    # In the shell's place: a shell would end at SIGTERM, and not wait for what it has started.
    ours = f"exec python3 -m {__name__} {_EXECUTOR.removeprefix('python3 -m ')}"
    command[at] = command[at].replace(_EXECUTOR, ours)
    return made


def main() -> None:
    """Carry out KFP's executor, the module that the first argument names, in this process."""
    from ray_jobs import logs
    from ray_jobs.attempts import exit_code_of, of_this_process
    from ray_jobs.observing import observed_step

    del sys.argv[0]
    executor, *arguments = sys.argv
    name, inputs = _called(arguments)
    root = root_of(inputs)
    attempt = None
    try:
        logs.setup()
        attempt = of_this_process(root, name, inputs) if root else None
        if attempt:
            attempt.check()
        with observed_step(name, inputs):
            runpy.run_module(executor, run_name="__main__", alter_sys=True)
    except Exception as error:
        logs.say_crash(error)  # what started the pipeline finds it in the log
        if attempt:
            attempt.record(error)
        sys.exit(exit_code_of(error))


def _called(arguments: list[str]) -> tuple[str, Mapping[str, Any]]:
    """The step that is carried out, and its input parameters."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    executor_input = json.loads(given["--executor_input"])
    inputs = executor_input.get("inputs", {}).get("parameterValues", {})
    return given["--function_to_execute"], inputs


def root_of(inputs: Mapping[str, Any]) -> str | None:
    """The storage root that a step's inputs name, if they do."""
    if "run" in inputs:
        return str(inputs["run"]).rsplit("/", 2)[0]
    if "member" in inputs:
        return str(inputs["member"]).rsplit("/", 4)[0]
    if "storage" in inputs:
        return str(inputs["storage"])
    if "spec" in inputs:
        import yaml

        found = yaml.safe_load(inputs["spec"])
        return found.get("storage") if isinstance(found, dict) else None
    return None


if __name__ == "__main__":
    main()
