# A fresh checkout needs nothing but python3 and make: each target below sets up .venv first when that is
# missing or older than pyproject.toml and constraints.txt.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UI_PORT ?= 5000
# A SQLite file of MLflow, in place of the one that holds the runs of this machine: make ui STORE=runs/mlflow.db
STORE ?=
# More arguments for the program that a target runs: make test ARGS="-k csm"
ARGS ?=
# Tried in this order; `make PYTHON=/path/to/python test` puts another one first.
PYTHON ?=
PYTHONS := $(PYTHON) python3.12 python3.13 python3.11 python3
# What `make pythons` runs: each command once from end to end, with and without Ray.
SMOKE := tests/commands/test_pipelines.py tests/commands/test_command_line.py tests/forking tests/losses

# The file of a cluster, as in make up CLUSTER=cluster/on-premises.yaml.
CLUSTER ?=
CLUSTER_FILE = $(or $(CLUSTER),cluster.yaml)
# A job, by the id that make submit prints; by default the newest.
JOB ?=
# FORCE=1 ends a cluster whose head does not answer.
FORCE ?=

.PHONY: help setup quickstart test check lint pythons ui docs bench clean up submit logs stop fetch down aws-role cluster-test

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with the tested set of packages

quickstart: $(READY) ## distill a teacher into a small student on the embedded corpus, end to end
	$(BIN)/python -m beamclip quickstart $(ARGS)

test: $(READY) ## run the tests
	$(BIN)/python -m pytest $(ARGS)

check: lint ## style, types and the tests that are quick and need no Ray: for every save
	$(BIN)/python -m pytest -m "not ray and not slow" $(ARGS)

lint: $(READY) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pythons: ## style, types and a smoke test under each Python from 3.11 to 3.13 that is here, in .venvs/
	@for version in 3.11 3.12 3.13; do \
	    if ! "python$$version" --version >/dev/null 2>&1; then echo "python$$version: not here"; continue; fi; \
	    echo "== python$$version"; \
	    $(MAKE) --no-print-directory VENV=.venvs/$$version PYTHON=python$$version lint test ARGS="$(SMOKE)"; \
	done

ui: $(READY) ## show the runs of this machine in MLflow; of a cluster with CLUSTER=FILE; of a store with STORE=FILE
ifneq ($(CLUSTER),)
	@$(BIN)/python -m beamclip.cluster.head ui $(CLUSTER) --port $(UI_PORT)
else
	@$(BIN)/python -m beamclip.tracking ui --port $(UI_PORT) $(if $(STORE),--store "$(STORE)")
endif

up: $(READY) ## start the cluster of cluster.yaml, or of CLUSTER=FILE; see docs/cluster.md
	@test -e ~/.ray/auth_token || $(BIN)/ray get-auth-token --generate > /dev/null
	@$(BIN)/python -m beamclip.cluster.check $(CLUSTER_FILE)
	$(BIN)/ray up -y --no-config-cache $(CLUSTER_FILE)
	@commit=$$(git rev-parse HEAD 2> /dev/null || true); \
	    $(BIN)/ray exec $(CLUSTER_FILE) "echo $$commit > ~/.beamclip-commit" > /dev/null 2>&1 || true

submit: $(READY) ## run a command on the cluster, as a job: make submit ARGS="distill --data shards ..."
	@$(BIN)/python -m beamclip.cluster.head submit $(CLUSTER_FILE) $(ARGS)

logs: $(READY) ## follow the log of the newest job, or of JOB=ID
	@$(BIN)/python -m beamclip.cluster.head logs $(CLUSTER_FILE) --job "$(JOB)"

stop: $(READY) ## stop the newest job, or JOB=ID; a training writes a checkpoint first
	@$(BIN)/python -m beamclip.cluster.head stop $(CLUSTER_FILE) --job "$(JOB)"

fetch: $(READY) ## copy the folders of all runs from the storage of the cluster to runs/
	@$(BIN)/python -m beamclip.cluster.head fetch $(CLUSTER_FILE)

down: $(READY) ## end the cluster; what is in its storage stays
	@$(BIN)/ray exec $(CLUSTER_FILE) 'bash ~/beamclip/cluster/stop.sh' || test -n "$(FORCE)" || { \
	    echo "$(CLUSTER_FILE): see above. make down FORCE=1 ends the cluster all the same." >&2; exit 1; }
	$(BIN)/ray down -y $(CLUSTER_FILE)

cluster-test: $(READY) ## make three machines of this one, and do all that docs/cluster.md does, faults included
	$(BIN)/python tests/cluster/several_machines.py
	$(BIN)/python tests/cluster/on_aws.py

aws-role: $(READY) ## make the roles and the security group of a cluster on AWS; with ARGS=--delete, delete them
	$(BIN)/python -m beamclip.cluster.aws role $(CLUSTER_FILE) $(ARGS)

docs: $(READY) ## build the pages of docs/ into site/, and check their links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open $(CURDIR)/site/index.html"

bench: $(READY) ## run every benchmark
	for program in benchmarks/*.py; do echo "== $$program"; $(BIN)/python "$$program" $(ARGS); done

clean: ## remove .venv, .venvs, caches and build products; runs/ stays
	rm -rf $(VENV) .venvs build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first Python of a fitting version that can make virtual environments; Debian packages that part apart.
define FIND_PYTHON
unfit="$$(python3 --version 2>&1)"; \
for python in $(PYTHONS); do \
    "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || continue; \
    unfit="$$python without its venv module (on Debian and Ubuntu: apt-get install python3-venv)"; \
    "$$python" -c 'import ensurepip, venv' 2>/dev/null || continue; \
    unfit=""; break; \
done; \
if [ -n "$$unfit" ]; then \
    echo "beamclip needs Python 3.11, 3.12 or 3.13; here is $$unfit." >&2; \
    echo "Install one of them, or say where it is: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; \
    exit 1; \
fi
endef

# Of pip's log only the large files are shown: silence for minutes looks like a hang, and two hundred lines
# hide an error. Errors come through stderr, untouched.
define SHOW_LARGE
/^Installing/ {print "  ... installing"} \
/[0-9][0-9](\.[0-9])? [MG]B/ {file = $$(NF-2); sub(/-(py|cp)[0-9].*/, "", file); print "  " file, $$(NF-1), $$NF} \
{fflush()}
endef

$(READY): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    $(FIND_PYTHON); \
	    echo "making $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv --clear $(VENV); \
	fi
	@echo "fetching about 230 packages, 3 GB with torch's CUDA libraries; the large ones are:"
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --progress-bar off \
	    -c constraints.txt -e '.[ingest,test]' | awk '$(SHOW_LARGE)'
	@touch $@
