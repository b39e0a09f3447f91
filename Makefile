# Every command of the project; `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev system-packages demo cluster-demo ray-up-demo monitoring check-dashboards test test-on-ray test-without-ray fuzz fuzz-files fuzz-bytes attack overload chaos soak mutations lock lock-check audit sbom lint bench train evaluate profile clean

BIN := .venv/bin
WEIR := $(BIN)/weir
DEMO_RATE ?= 1
SEED ?= 1
MINUTES ?= 60
EMBEDDED ?= 10
export TRANSFORMERS_VERBOSITY ?= error
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

# The environment, a step a file: a step is run again only when what it reads has changed.
PIP := $(BIN)/pip --disable-pip-version-check -q install
UV := $(BIN)/uv pip install -q --python .venv --no-deps
# Trust whom the system trusts, as pip does.
export UV_SYSTEM_CERTS ?= 1
# uv does not read pip's configuration. Where only that knows how to reach packages, pip installs them, which takes longer.
locked = $(UV) --require-hashes -r $(1) || $(PIP) --require-hashes --no-deps -r $(1)

.venv/bin/python:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		if "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2> /dev/null; \
		then echo "making .venv with $$("$$python" --version)"; exec "$$python" -m venv --clear .venv; fi; \
	done; \
	echo "found no Python 3.11, 3.12 or 3.13 with venv and pip$(if $(PYTHON), at $(PYTHON)); install one" \
		"(on Debian with python3-venv), or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.13" >&2; exit 1

.venv/.uv: requirements-uv.lock | .venv/bin/python
	$(PIP) --require-hashes --no-deps -r $<
	@touch $@

.venv/.runtime: requirements.lock .venv/.uv
	$(call locked,$<)
	@touch $@

# pip may have been told where a build of torch for this machine is, and CUDA's libraries are no part of the lock.
.venv/.torch: requirements.txt .venv/.runtime
	$(PIP) --no-compile $$(grep ^torch== $<)
	@touch $@

.venv/.project: pyproject.toml .venv/.runtime
	$(UV) --no-build-isolation -e .
	@touch $@

# uv leaves it to Python to compile modules. Then each of the processes of the first service would do it, all at the same
# time, and Ray gives some of them 15 seconds to start.
.venv/.compiled: .venv/.torch .venv/.project
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -W ignore -c \
		'import deploy.app, deploy.control, deploy.local, workers.models.family, ray.dashboard.agent, ray.dashboard.dashboard'
	@touch $@

.venv/.dev: requirements-dev.lock .venv/.compiled
	$(call locked,$<)
	@touch $@

setup: .venv/.compiled  ## make the virtual environment; PYTHON=python3.13 chooses one of 3.11, 3.12, 3.13
setup-dev: .venv/.dev system-packages  ## the same with what tests and linters need

# Programs that tests run and PyPI does not have, as command:package of Debian. Without them the rest still works.
PROMETHEUS := promtool:prometheus
SYSTEM := $(PROMETHEUS) chromium:chromium chromedriver:chromium-driver

system-packages:  ## install what tests need from Debian (as root; else say what is missing)
	@missing=; PATH="$$PATH:/usr/sbin:/sbin"; for it in $(SYSTEM); do command -v $${it%%:*} > /dev/null || missing="$$missing $${it##*:}"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "installing$$missing"; apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing > /dev/null; \
	else \
		echo "missing:$$missing; tests that need them fail. Install them: sudo apt-get install$$missing" >&2; \
	fi

demo: setup  ## serve the embedded family, replay two minutes of traces/bursty.csv, show the report
	@$(WEIR) up --detach --port 0; \
	trap : INT; \
	$(WEIR) replay traces/bursty.csv --duration 120 --rate $(DEMO_RATE) --score deploy/families/weir-tiny.yaml; code=$$?; \
	$(WEIR) down; exit $$code

cluster-demo: setup  ## serve 16 emulated GPUs on five Ray nodes of this machine, kill one in the middle of a replay
	@$(BIN)/python -m benchmarks.lost_node

ray-up-demo: SYSTEM := $(PROMETHEUS) rsync:rsync sshd:openssh-server ssh:openssh-client redis-server:redis-server ip:iproute2
ray-up-demo: setup system-packages  ## ray up, serve deploy, a replay, ray down, on hosts made of Linux namespaces (as root)
	@$(BIN)/python -m benchmarks.ray_up

monitoring: SYSTEM := $(PROMETHEUS)
monitoring: setup system-packages  ## watch the service that is up with Prometheus, and say how to start Grafana
	@$(WEIR) monitor

check-dashboards: setup  ## make the dashboards and hold them against Grafana's own types (needs npm)
	$(BIN)/python -m deploy.monitoring.dashboards
	cd deploy/monitoring/grafana/schema && npm ci --silent && npm run --silent check

# Tests that start Ray mostly wait, so the others and the checks run beside them. They are not shared out further: Ray
# gives its own processes little time to start.
test: setup-dev  ## lint, type-check and run every test
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target test-on-ray test-without-ray
test-on-ray: TESTS := ray
test-without-ray: TESTS := not ray
test-without-ray: lint
test-on-ray test-without-ray: setup-dev
	$(BIN)/python -m pytest -m '$(TESTS)'

fuzz: setup-dev  ## fuzz the API from its own description
	$(BIN)/python -m tests.fuzz

fuzz-files: setup-dev  ## damage every kind of file that is read, for MINUTES=60, and read it
	$(BIN)/python -m tests.fuzz_files --minutes $(MINUTES)

fuzz-bytes: setup-dev  ## damage HTTP requests for MINUTES=60, and send them to the API
	$(BIN)/python -m tests.fuzz_bytes --minutes $(MINUTES)

attack: setup-dev  ## attack a service in every known way; NEIGHBOURS=300 RUNS=5 measure a client beside a hostile one
	$(BIN)/python -m benchmarks.attack $(if $(NEIGHBOURS),--neighbours $(NEIGHBOURS)) $(if $(RUNS),--runs $(RUNS))

lock: setup-dev  ## resolve and hash the dependencies anew; UPGRADE=--upgrade takes newer ones
	$(BIN)/python -m tests.lock $(UPGRADE)

lock-check: setup-dev  ## ask the registry whether Python 3.11, 3.12 and 3.13 have a wheel for all that is locked
	$(BIN)/python -m tests.lock --check

audit: setup-dev  ## look the dependencies up in the advisory database (needs the network)
	$(BIN)/python -m tests.audit

sbom: setup-dev  ## write the software bill of materials of this environment to sbom.json
	$(BIN)/uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-format JSON --output-file sbom.json $(BIN)/python

mutations: setup-dev  ## switch mechanisms off and see that the tests that guard them fail
	$(BIN)/python -m tests.mutations

overload: setup-dev  ## five times the capacity: who is refused, how fast, and who is answered in time
	$(BIN)/python -m benchmarks.overload

chaos: setup-dev  ## harm a service under load, part by part, and keep the books of every request; SEED=1 FAULTS=a,b FLIPS=4
	$(BIN)/python -m benchmarks.chaos --seed $(SEED) $(if $(FAULTS),--faults $(FAULTS)) $(if $(FLIPS),--flips $(FLIPS))

soak: setup-dev  ## keep a service under load for MINUTES=60 and EMBEDDED=10 more, and say what of it grows
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --embedded $(EMBEDDED)

lint: setup-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup-dev  ## Weir's own cost, solver times, cascade against all-heavy
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.solvers
	$(BIN)/python -m benchmarks.simulator
	$(BIN)/python -m benchmarks.cascade

train: setup  ## train the embedded family from its seed (resumable; hours on a CPU)
	$(WEIR) train

evaluate: setup  ## measure the embedded family and rewrite its model card
	$(WEIR) evaluate --card models/weir-tiny

profile: setup  ## measure the embedded family's latencies on this machine
	$(WEIR) profile --out deploy/profiles/weir-tiny-cpu.json

clean:  ## remove the environment and everything that runs have left
	rm -rf .venv .weir runs sbom.json .schemathesis .pytest_cache .mypy_cache .ruff_cache .hypothesis
