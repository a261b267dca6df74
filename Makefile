# Everything from a clean clone: `make run`, `make test`. Needs Python 3.11+, git and make.
.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast test-slow test-faults cluster-test node-test minio check format lock bench image image-test \
  chart-readme clean
BIN := .venv/bin
TAG ?= emberline
CLUSTER_TOOLS := kine kube-apiserver kube-controller-manager kube-scheduler helm kubeconform ray-operator

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: .venv/.ready  ## make .venv from requirements.lock

# uv from the PATH, or one of the project's own under .uv
.venv/.ready: requirements.lock pyproject.toml
	@uv="$$(command -v uv || true)"; \
	if [ -z "$$uv" ]; then \
	  [ -x .uv/bin/uv ] || { python3 -m venv .uv && .uv/bin/python -m pip install --quiet uv; } || \
	    { echo "uv could not be installed: make 'python3 -m venv' work, or put uv on the PATH" >&2; exit 1; }; \
	  uv="$$PWD/.uv/bin/uv"; \
	fi; \
	[ -x $(BIN)/python ] || "$$uv" venv --quiet --python '>=3.11,<3.14' .venv; \
	VIRTUAL_ENV="$$PWD/.venv" "$$uv" pip sync --quiet --require-hashes --compile-bytecode requirements.lock && \
	VIRTUAL_ENV="$$PWD/.venv" "$$uv" pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: setup  ## train, test, track and register the fire ensemble
	@$(BIN)/emberline run fire

test: setup  ## all tests, in two lanes side by side
	@$(MAKE) --no-print-directory --jobs 2 test-faults test-slow

test-fast: setup  ## the tests that need no cluster
	@$(BIN)/pytest -m "not slow"

test-slow: test-fast  ## those that start servers and train, after the fast ones
	@$(BIN)/pytest -m slow --ignore tests/contract --ignore tests/chaos

test-faults: setup  ## those of the targets (real clusters, SageMaker's emulator), then the faults
	@$(BIN)/pytest -m slow tests/contract
	@$(BIN)/pytest -m slow tests/chaos

cluster-test: setup  ## the chart on a real control plane; builds Kubernetes first, once (needs Go)
	@$(BIN)/python -m tests.go_tools $(CLUSTER_TOOLS) >/dev/null && $(BIN)/pytest -v tests/cluster

node-test: setup  ## a run in pods of the image, on a real kubelet (needs Go, root and containerd)
	@$(BIN)/python -m tests.go_tools $(CLUSTER_TOOLS) kubelet >/dev/null && \
	unshare --net --mount sh -c 'ip link set lo up && exec $(BIN)/pytest tests/cluster/node'

minio: setup  ## the S3 server that tests prefer to a mock, built once (where there is Go)
	@if command -v go >/dev/null; then $(BIN)/python -m tests.go_tools minio >/dev/null; fi

check: setup  ## lint, types, and whether the compiled pipelines are current
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . && $(BIN)/mypy --no-error-summary
	@$(BIN)/emberline pipelines compile all --check >/dev/null || { echo "compiled pipelines are not current; run: emberline pipelines compile all" >&2; exit 1; }

format: setup  ## let ruff mend what it can
	@$(BIN)/ruff check --quiet --fix . && $(BIN)/ruff format --quiet .

# SageMaker takes no image with a provenance beside it.
image:  ## build the image TAG with docker, buildah or podman; BASE=IMAGE, CUDA=1
	@if docker info >/dev/null 2>&1; then builder="docker build --provenance=false --output type=docker"; \
	elif command -v buildah >/dev/null; then builder="buildah bud --isolation chroot --layers --force-rm"; \
	elif command -v podman >/dev/null; then builder="podman build --layers"; \
	else echo "an image is built with docker and its engine, buildah or podman: install one" >&2; exit 1; fi; \
	$$builder --tag $(TAG) $(if $(BASE),--build-arg BASE=$(BASE)) $(if $(CUDA),--build-arg CUDA=$(CUDA)) \
	  --build-arg VERSION="$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
	  --build-arg REVISION="$$(git describe --always --dirty=+ --abbrev=12 --exclude='*')" \
	  $${SSL_CERT_FILE:+--secret id=certificates,src="$$SSL_CERT_FILE"} \
	  $${NETRC:+--secret id=netrc,src="$$NETRC"} \
	  $${PIP_INDEX_URL:+--build-arg PIP_INDEX_URL="$$PIP_INDEX_URL"} \
	  $${UV_DEFAULT_INDEX:+--build-arg UV_DEFAULT_INDEX="$$UV_DEFAULT_INDEX"} .

image-test: setup  ## build the image on a base of Debian's packages, and run it as a pod would
	@tests/image/base.sh localhost/emberline-base
	@$(MAKE) --no-print-directory image BASE=localhost/emberline-base TAG=localhost/emberline:test
	@EMBERLINE_IMAGE=localhost/emberline:test $(BIN)/pytest tests/image

lock:  ## pin the dependencies anew
	@uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
	  --no-header --extra server --group dev pyproject.toml --output-file requirements.lock

bench: setup  ## the benchmarks: tables, kept as CSV beside them
	@for bench in tests/bench/*.py; do \
	  $(BIN)/python -m tests.bench.$$(basename $$bench .py) || exit 1; \
	done

chart-readme: setup  ## the chart's README, from its values
	@$(BIN)/python tests/chart/chart_readme.py

clean:  ## remove the environment and caches; runs stay
	rm -rf .venv .uv .pytest_cache .mypy_cache .ruff_cache .hypothesis
