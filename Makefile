# The project's commands. `make` alone prints them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Files of tests are run side by side, the long ones first (tests/conftest.py). Half of the time they wait for other
# processes, so there is one worker more than cores. A worker needs 1 to 2 GB: a Kafka, for some tests three more brokers.
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 1)
SIDE_BY_SIDE = --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
UV := $(shell command -v uv 2>/dev/null)
INSTALL = pip install --python $(BIN)/python --require-hashes -r requirements-dev.txt
INSTALL_OURS = pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

KAFKA_IMAGE = $(shell sed -n 's/^ *image: \(apache\/kafka:.*\)/\1/p' deploy/compose.yaml)

# Images of Python set it. The tests start hundreds of processes, and each would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup test check quick unit oldest coverage format pages site demo model chaos bench bench-quick alerts soak lock image kind cluster-test release-check clean

# What the documentation site needs of other projects: package, version, file in it, its SHA-256.
SITE := build/site-scripts
MERMAID := mermaid 11.17.2 dist/mermaid.min.js 581ed7d74bd9048d0e3a91363927d72ef22942d7722546b27f7cc29e35390eb8
IFRAME_WORKER := iframe-worker 1.0.4 shim/index.js e8e412dbcfea9b7e31b5ffa288d7b6035915e714c542f4176a0cdbe262fc9609

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## install the packages of requirements-dev.txt into .venv, with their hashes

$(READY): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.x")'
	@echo "Installing $$(grep -c == requirements-dev.txt) packages into $(VENV): some seconds, a minute or two without uv ..."
ifdef UV
	@test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) $(VENV)
	@# uv's environments have no pip, by which a test builds what the image has; this one comes with Python itself.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --default-pip >/dev/null || true
	uv $(INSTALL)
	uv $(INSTALL_OURS)
else
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# pip takes ten times uv's CPU time, so it installs uv first. It also does the rest where uv can't, at a mirror that
	@# only pip's configuration names for instance.
	sed -n '/^uv==/,/^    #/p' requirements-dev.txt >$(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt
	$(BIN)/uv $(INSTALL) || $(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/uv $(INSTALL_OURS)
endif
	@# uv leaves byte code to the first import: that of what most processes import is written here, once.
	@$(BIN)/python -c 'import hypothesis, pytest, service.app'
	@echo "$(VENV) is ready."
	@touch $@

test: check ## run all checks and all tests, with a real Kafka, as CI does; with another Python: as `make unit`
	@mkdir -p build
	$(BIN)/coverage run -m pytest -q tests/sync/test_sync.py
	$(BIN)/coverage report --include=service/sync.py --fail-under=100
	$(BIN)/python -m tools.kafka_classes
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --ignore=tests/sync/test_sync.py --junit-xml=build/tests.xml

check: $(READY) ## check lint, format, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

quick: $(READY) ## run the tests that need no Kafka
	$(BIN)/python -m pytest -m 'not kafka and not e2e'

unit: $(READY) ## run the tests that need seconds; with another Python: PYTHON=python3.13 VENV=build/python-3.13
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m 'not kafka and not e2e' \
		$(foreach part,asyncapi benchmarks cli repository sandbox stress system,--ignore=tests/$(part))

# anyio's plugin for pytest is not needed, and that of old versions uses what pytest deprecates.
oldest: $(READY) ## run the tests that need seconds with the oldest versions of packages that pyproject.toml allows
	@mkdir -p build
	$(BIN)/uv pip compile pyproject.toml --quiet --resolution lowest-direct --all-extras --output-file build/oldest.txt
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) build/oldest
	$(BIN)/uv pip install --quiet --python build/oldest/bin/python --no-verify-hashes -r requirements-dev.txt --override build/oldest.txt
	$(BIN)/uv pip install --quiet --python build/oldest/bin/python --no-deps --no-build-isolation -e .
	build/oldest/bin/python -m pytest -q $(SIDE_BY_SIDE) -p no:anyio -m 'not kafka and not e2e' \
		$(foreach part,benchmarks repository stress system,--ignore=tests/$(part))

coverage: $(READY) ## measure which lines and branches of the package the tests reach, without those of whole processes
	$(BIN)/coverage run -m pytest -q -m 'not e2e' --ignore=tests/repository --ignore=tests/stress --ignore=tests/benchmarks
	$(BIN)/coverage report

format: $(READY) ## format the code, and fix lint errors automatically
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

pages: $(READY) ## regenerate the files that are made from the code: tables, pictures, schemas, the dashboard
	for page in tables architecture states vcda_answers bad_input schemas prometheusrule dashboard; do $(BIN)/python -m tools.$$page || exit; done

site: $(READY) $(SITE)/mermaid.min.js $(SITE)/iframe-worker.js ## build the documentation site, in build/site: open its index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(SITE)/mermaid.min.js: WANTED = $(MERMAID)
$(SITE)/iframe-worker.js: WANTED = $(IFRAME_WORKER)
$(SITE)/%.js: Makefile
	@mkdir -p $(SITE)
	cd $(SITE) && npm pack --silent $(word 1,$(WANTED))@$(word 2,$(WANTED)) >/dev/null
	tar -xOf $(SITE)/$(word 1,$(WANTED))-$(word 2,$(WANTED)).tgz package/$(word 3,$(WANTED)) >$@
	echo "$(word 4,$(WANTED))  $@" | sha256sum --check --quiet
	rm $(SITE)/$(word 1,$(WANTED))-$(word 2,$(WANTED)).tgz

demo: $(READY) ## run Kafka, a simulated VCDA and the service on this machine, with a live view
	$(BIN)/vm-sync demo

model: $(READY) ## check every state of the protocol's model with Spin: a quarter of an hour
	$(BIN)/python -m tools.model

chaos: $(READY) ## run the fault injection tests; options: SEED=, SEEDS=, REQUESTS=, BROKERS="1 3"
	$(BIN)/python -m tests.stress.chaos
	$(BIN)/python -m tests.stress.versions
	$(BIN)/python -m tests.stress.upgrade
	$(BIN)/python -m tests.stress.upgrade_states

bench: $(READY) ## run the benchmark and write its pages: an hour
	$(BIN)/python -m benchmarks
	$(BIN)/python -m tools.tables

bench-quick: $(READY) ## run a short benchmark: some minutes, writes no page
	$(BIN)/python -m benchmarks --quick

alerts: $(READY) ## provoke each alert for real, and write docs/alerts.md: some minutes; needs prometheus
	$(BIN)/python -m tools.alerts_page

soak: $(READY) ## run a steady load for MINUTES=10, and check that memory stays constant
	$(BIN)/python -m benchmarks.long_run --processes 1 --rate 20 --remember 60 --minutes $(or $(MINUTES),10)

lock: $(READY) ## update the pinned versions in both requirements files
	$(LOCK) --upgrade --extra tracing -o requirements.txt
	$(LOCK) --upgrade -c requirements.txt --all-extras --group dev -o requirements-dev.txt
	$(PYTHON) -m tools.pre_commit

image: ## build the container image vm-sync, labelled with version and revision
	docker build --build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD) -t vm-sync .

kind: ## create a cluster of kind called vm-sync, with the image and Kafka's in it; needs Docker, kind and kubectl
	kind get clusters | grep -qx vm-sync || kind create cluster --name vm-sync --wait 120s
	docker build --quiet -t vm-sync:cluster-test .
	docker pull --quiet $(KAFKA_IMAGE)
	kind load docker-image --name vm-sync vm-sync:cluster-test $(KAFKA_IMAGE)
	@echo "Next: make cluster-test IMAGE=vm-sync:cluster-test. To remove it: kind delete cluster --name vm-sync"

cluster-test: $(READY) ## run the deployment on the cluster of kubectl, with faults; options: IMAGE=, OTHER=, ONLY=, KEEP=1, WRITE=1
	$(BIN)/python -m tests.stress.kubernetes --image '$(IMAGE)' --other '$(OTHER)' \
		$(if $(ONLY),--only $(ONLY)) $(if $(KEEP),--keep) $(if $(WRITE),--write)

release-check: $(READY) ## check and build a release without publishing it; TAG=v1.2.3 is compared with the version
	$(BIN)/python -m tools.release --tag '$(TAG)'

clean: ## remove build results; the downloaded Kafka stays
	rm -rf $(VENV) build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
