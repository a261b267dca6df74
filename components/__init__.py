"""KFP components: each parses its inputs, calls one function of ray_jobs and writes its outputs.

A component's function travels alone to its container, so it imports what it needs within. `run` is
the URI of the run's folder: every file lies there, and the KFP artifacts are what its UI shows of
them.
"""

import os

IMAGE = os.environ.get("EMBERLINE_IMAGE", "emberline-python:latest")
