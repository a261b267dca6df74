"""What the image runs for the words after its name: `python -m ray_jobs.entrypoint train`.

`train` and `serve` are SageMaker's (`ray_jobs.container`); a program of the image is run with its
own arguments, as KubeRay, KFP and `docker run` ask for it. This process becomes the program, so
signals and the exit code are the program's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

JOBS = ("train", "serve")
PROGRAMS = ("emberline", "ray", "mlflow", "python", "python3")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 2 if the words are no command of the image; else it does not return."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in JOBS:
        command = [sys.executable, "-m", "ray_jobs.container", *words]
    elif words and words[0] in PROGRAMS:
        command = words
    else:
        found = f"{words[0]!r} is no command of this image" if words else "no command was given"
        print(
            f"error: {found}; give it one of {', '.join((*JOBS, *PROGRAMS))}, or another program "
            "by --entrypoint",
            file=sys.stderr,
        )
        return 2
    os.execvp(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    sys.exit(main())
