# Every verb of the project; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXAMPLE := examples/iris/model.ubj
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help install serve test test-chart test-cluster chart-golden test-long test-pythons test-clients test-infra image-test bench bench-peers bench-kernels bench-kernel-peers bench-scaling lint format requirements clean

help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.server ## Install the server into .venv

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.server: requirements/build.txt requirements/server.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) -r requirements/build.txt
	$(PIP) -r requirements/server.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.server
	$(PIP) -r requirements/test.txt
	@touch $@

serve: $(VENV)/.server ## Serve the example model on http://127.0.0.1:8000
	@url=http://127.0.0.1:$${SCORER_PORT:-8000}; \
	if [ "$${SCORER_MODEL:-$(EXAMPLE)}" = $(EXAMPLE) ]; then \
		echo "Once it listens, this scores two flowers:"; \
		printf '\n  %s\n\n' "curl $$url/v1/models/iris:predict -d '{\"instances\": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}'"; \
	else \
		echo "Once it listens, this names the model, and $$url/v2/models/<name> says what it expects:"; \
		printf '\n  %s\n\n' "curl $$url/v2/models"; \
	fi
	@SCORER_MODEL=$${SCORER_MODEL:-$(EXAMPLE)} WEB_CONCURRENCY=$${WEB_CONCURRENCY:-2} exec $(BIN)/xgboost-server serve

# Without Helm, which is built here, the chart's tests are skipped and say so; `make test-chart` insists.
test: $(VENV)/.test ## Install what the tests need and run them
	@delivery/tools.sh $(TOOLS) $(CHART_TOOLS) || echo "no tools for the chart: its tests are skipped"
	$(BIN)/python -m pytest

TOOLS := .tools
# What the chart's tests need of delivery/tools.sh.
CHART_TOOLS := helm4 helm3 helm-docs prometheus

test-chart: $(VENV)/.test ## Test the Helm chart; SCHEMAS names a folder of CRD schemas
	$(call tools,$(CHART_TOOLS))
	$(BIN)/python -m pytest tests/chart

# LOAD_IMAGE: a command that puts the image in a file on the nodes. CLUSTER_IMAGE: one that is there already.
test-cluster: $(VENV)/.test ## Test the chart on the cluster of KUBECONFIG; LOAD_IMAGE loads an image
	$(call tools,$(CHART_TOOLS))
	image=$${CLUSTER_IMAGE:-$$(tests/cluster/image.sh)} && CLUSTER_IMAGE=$$image $(BIN)/python -m pytest -v tests/cluster

chart-golden: $(VENV)/.test ## Render the chart's golden files, README and list of settings anew
	$(call tools,$(CHART_TOOLS))
	$(BIN)/python -m tests.chart.rewrite

IMAGE ?= localhost/xgboost-server:test

image-test: $(VENV)/.test ## Build the image and test it locked down (Debian, as root; no container engine)
	tests/image/build.sh $(IMAGE)
	IMAGE=$(IMAGE) $(BIN)/python -m pytest tests/image

test-long: $(VENV)/.test ## Run the tests that take minutes
	$(BIN)/python -m pytest -m long

# Each in an environment of its own; an interpreter that is not there is passed over, and said to be.
PYTHONS ?= python3.11 python3.12 python3.13 python3.14

test-pythons: ## Run the tests on every Python from 3.11 that is here
	@for python in $(PYTHONS); do \
	  if $$python -c '' 2>/dev/null; then \
	    echo "== $$python"; $(MAKE) --no-print-directory test PYTHON=$$python VENV=.venv-$$python || exit 1; \
	  else echo "== $$python is not here"; fi; \
	done

.PRECIOUS: .venv-%/.clients
.venv-%/.clients: requirements/clients-%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

test-clients: $(VENV)/.server .venv-kserve/.clients .venv-triton/.clients ## Drive the server with kserve's and Triton's own clients
	.venv-kserve/bin/python -m pytest --confcutdir=tests/clients tests/clients/test_kserve.py
	.venv-triton/bin/python -m pytest --confcutdir=tests/clients tests/clients/test_triton.py

$(VENV)/.infra: requirements/infra.txt $(VENV)/.test
	$(PIP) -r requirements/infra.txt
	@touch $@

# SCHEMAS=FOLDER adds eksctl's own schema, from FOLDER/eksctl.io/clusterconfig_v1alpha5.json; `eksctl utils schema` prints it.
test-infra: $(VENV)/.infra ## Lint infra/ and create, update and delete it in an AWS of this machine (no account, no network)
	$(BIN)/python -m pytest tests/infra

$(VENV)/.bench: requirements/bench.txt $(VENV)/.server
	$(PIP) -r requirements/bench.txt
	@touch $@

# What Debian has and Python has not.
define need
	@command -v $(1) >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && apt-get install -qy --no-install-recommends $(2); } || { echo "$(1) is missing: apt-get install $(2) (Debian, Ubuntu)"; exit 1; }
endef

# Each peer in an environment of its own. Without dependencies: the lock has them all, but for what it leaves out on purpose.
.PRECIOUS: .venv-bench-%/.bench
.venv-bench-%/.bench: requirements/bench-%.txt
	$(PYTHON) -m venv .venv-bench-$*
	.venv-bench-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

bench: $(VENV)/.bench ## Compare speed and memory with what people write instead (Linux, four minutes)
	$(call need,wrk,wrk)
	$(BIN)/python -m benchmarks serving $(BENCH)

bench-peers: $(VENV)/.bench .venv-bench-kserve/.bench .venv-bench-mlserver/.bench bench-kernel-peers ## Compare with KServe's server and MLServer, and the kernels with other libraries (twelve minutes)
	$(call need,wrk,wrk)
	$(BIN)/python -m benchmarks peers $(BENCH)
	$(BIN)/python -m benchmarks.chart

bench-kernels: $(VENV)/.bench ## Time the kernels alone against XGBoost, for AVX-512 and AVX2 (four minutes)
	$(BIN)/python -m benchmarks kernels $(BENCH)
	$(BIN)/python -m benchmarks decoding $(BENCH)

bench-kernel-peers: $(VENV)/.bench .venv-bench-treelite/.bench .venv-bench-onnx/.bench .venv-bench-onedal/.bench ## Time the kernels against Treelite, ONNX Runtime and oneDAL
	$(BIN)/python -m benchmarks kernel-peers $(BENCH)

bench-scaling: $(VENV)/.bench ## Show what more rows, trees, features, connections and workers cost (eight minutes)
	$(call need,wrk,wrk)
	$(call need,nginx,nginx-light)
	$(BIN)/python -m benchmarks scaling --seconds 1 $(BENCH)

lint: $(VENV)/.test ## Check style and types (workflows, scripts and YAML: lint-workflows)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test ## Lay the code out
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

requirements: ## Lock the dependencies of pyproject.toml anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml -o requirements/server.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml \
	  --extra files -c requirements/server.txt -o requirements/files.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --group test -c requirements/server.txt -o requirements/test.txt
	for group in go train bench; do \
	  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	    --group $$group -c requirements/server.txt -c requirements/test.txt -o requirements/$$group.txt; \
	done
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --group infra -c requirements/server.txt -c requirements/test.txt -o requirements/infra.txt
	for client in kserve triton; do \
	  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	    requirements/clients-$$client.in -o requirements/clients-$$client.txt; \
	done
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  requirements/delivery.in -o requirements/delivery.txt
	for peer in kserve mlserver treelite onnx onedal; do \
	  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-emit-package xgboost --no-emit-package nvidia-nccl-cu12 \
	    requirements/bench-$$peer.in -o requirements/bench-$$peer.txt; \
	done

include delivery/delivery.mk

clean: ## Remove what the other verbs made
	rm -rf $(VENV) .venv-*/ $(TOOLS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
