# The image that trains and serves, on SageMaker, a Ray cluster or Kubeflow:
#   docker build --provenance=false --output type=docker --tag emberline .
# BASE is any image with Python 3.11 to 3.13 and its venv module.
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}
WORKDIR /opt/emberline
ENV PATH=/opt/emberline/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY requirements.lock ./
RUN python3 -m venv .venv && pip install --no-cache-dir --no-compile --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY ray_jobs ray_jobs
COPY components components
COPY pipelines pipelines
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
# `train` or `serve`, as SageMaker says; docker run --entrypoint overrides it.
ENTRYPOINT ["python", "-m", "ray_jobs.container"]
