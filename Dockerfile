# The image that trains, serves and runs MLflow, on SageMaker, KubeRay, Kubeflow or by itself:
#   make image                       with docker, podman or buildah
#   docker build --tag emberline .   by hand; --build-arg CUDA=1 for GPUs
# BASE is any Debian or Ubuntu with Python 3.11 to 3.13 and its venv module.
ARG BASE=python:3.12-slim-bookworm

# The dependencies that run, with the lock's versions and hashes: what it lacks is refused.
FROM ${BASE} AS dependencies
WORKDIR /build
# Of networks with a registry of their own: its URL, here, and by secrets its certificates and password.
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    UV_CONSTRAINT=requirements.lock UV_REQUIRE_HASHES=1 UV_LINK_MODE=copy \
    UV_CACHE_DIR=/var/cache/uv UV_PYTHON=/opt/emberline PATH=/opt/build/bin:$PATH
RUN --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=secret,id=netrc,target=/root/.netrc \
    python3 -m venv /opt/build && pip install --quiet --no-cache-dir uv==0.13.9 && \
    uv venv --quiet --python python3 /opt/emberline
COPY pyproject.toml requirements.lock ./
# CUDA=1 keeps what GPUs need. Without it go triton, CUDA's Python and, of NVIDIA's libraries, all but
# the 12 that the loader asks for when torch is imported: 2.4 GB of 6.2. The other 1.6 GB are linked
# into the registry's one build of torch, which does not load without them.
ARG CUDA=""
RUN --mount=type=secret,id=certificates,target=/etc/ssl/certs/ca-certificates.crt \
    --mount=type=secret,id=netrc,target=/root/.netrc \
    --mount=type=cache,target=/var/cache/uv \
    set -eu; \
    uv pip compile --quiet --extra server pyproject.toml --output-file run.txt; \
    [ -n "$CUDA" ] || sed -i -E '/^(triton|cuda-)/d' run.txt; \
    uv pip install --quiet --no-deps --compile-bytecode --requirements run.txt; \
    echo hatchling | uv pip compile --quiet - --output-file build.txt; \
    uv pip install --quiet --no-deps --python /opt/build --requirements build.txt; \
    if [ -z "$CUDA" ]; then \
      cd /opt/emberline/lib/python3*/site-packages; \
      ldd torch/lib/libtorch_python.so | grep -o '/[^ ]*/nvidia/[^ ]*' | xargs realpath > /tmp/linked; \
      find "$PWD/nvidia" -type f | grep -vxFf /tmp/linked | xargs rm; \
      rm torch/lib/libtorch_cuda_linalg.so; \
      find nvidia -type d -empty -delete; \
    fi; \
    /opt/emberline/bin/python -c 'import torch, torchvision, timm'

# The project, apart from them: a change of it is a layer of a few hundred kB.
FROM dependencies AS project
COPY README.md LICENSE ./
COPY ray_jobs ray_jobs
COPY components components
COPY pipelines pipelines
RUN hatchling build --target wheel --directory /tmp/dist && \
    UV_REQUIRE_HASHES=0 uv pip install --quiet --offline --no-deps --compile-bytecode \
      --python /opt/emberline --prefix /opt/project /tmp/dist/*.whl

FROM ${BASE}
# An init: it passes signals on, and reaps the children that a killed Ray leaves.
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends tini && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*
# SageMaker mounts /opt/ml as root's: the image for it is built with --build-arg UID=0.
ARG UID=10001
RUN mkdir -p /opt/ml /home/emberline && chown ${UID}:${UID} /opt/ml /home/emberline && \
    echo 'PATH=/opt/emberline/bin:$PATH' > /etc/profile.d/emberline.sh
# The root may be read-only: what is written goes to /tmp, /opt/ml, and the folder that it is started in.
# USER, for a uid that is in no /etc/passwd has no name.
ENV PATH=/opt/emberline/bin:$PATH HOME=/tmp USER=emberline LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
COPY --from=dependencies /opt/emberline /opt/emberline
COPY --from=project /opt/project /opt/emberline
ARG CUDA=""
ENV NVIDIA_VISIBLE_DEVICES=${CUDA:+all} NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /home/emberline
USER ${UID}:${UID}
ENTRYPOINT ["tini", "--", "python", "-P", "-m", "ray_jobs.entrypoint"]
ARG BASE
ARG VERSION=""
ARG REVISION=""
ENV EMBERLINE_REVISION=${REVISION}
LABEL org.opencontainers.image.title=Emberline \
      org.opencontainers.image.description="Trains, sweeps, ensembles, promotes and serves models" \
      org.opencontainers.image.licenses=MIT \
      org.opencontainers.image.base.name=${BASE} \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION}
