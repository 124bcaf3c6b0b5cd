# Every target makes the environment it needs, once; the second call starts at once.
# Plain GNU make, 3.81 (macOS) or later; a POSIX shell; Python 3.11 to 3.14.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:

# What the caller may set:  make demo PYTHON=python3.13 TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?=
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV ?= .venv
JOBS ?=
ARGS ?=

PY := $(VENV)/bin/python
PIP := "$(PY)" -m pip --disable-pip-version-check
METADATA := pyproject.toml src/epan/_version.py
WHICH_PYTHON := import os, platform, sys; print("Python", platform.python_version(), "in", os.path.realpath(sys.base_prefix))
# Where PyTorch brings no Triton of its own, the tests of the GPU kernels take the one whose interpreter they are known to run in.
CONSTRAIN := from importlib.metadata import version; from importlib.util import find_spec; print("torch==" + version("torch")); print("triton<3.7" if find_spec("triton") is None else "triton==" + version("triton"))
COUNT_CORES := import os; n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(); print(min(n or 1, 8))

.PHONY: help demo test check lint types contracts format env clean distclean same-python FORCE

help: ## show this list
	@echo "usage: make TARGET [VARIABLE=value]"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PYTHON=       the interpreter to build on     (default: python3, else the newest of 3.14 to 3.11)"
	@echo "  TORCH=        the PyTorch to install          (default: torch==2.13.0)"
	@echo "  TORCH_INDEX=  the wheel index to take it from (default: pip's own)"
	@echo "  VENV=         where the environment lives     (default: .venv)"
	@echo "  JOBS=         test processes                  (default: one per core, at most 8)"
	@echo "  ARGS=         further arguments for the demo or for pytest, e.g. ARGS='-k causal', ARGS=--slow"

demo: $(VENV)/.lab ## train five attention kernels on a small task and write a report
	@"$(PY)" -m epan demo $(ARGS)

test: $(VENV)/.dev ## run the tests, one process per core; with ARGS=--slow also those that are long by nature
	@jobs="$(JOBS)"; jobs=$${jobs:-$$("$(PY)" -c '$(COUNT_CORES)')}; \
	OMP_NUM_THREADS=1 MPLBACKEND=Agg "$(PY)" -m pytest -n "$$jobs" --dist worksteal -rs $(ARGS)

check: lint types contracts ## lint, formatting, types and import contracts

lint: $(VENV)/.dev ## ruff: rules and formatting
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .

types: $(VENV)/.dev ## mypy
	"$(PY)" -m mypy

contracts: $(VENV)/.dev ## import-linter: who may import whom
	"$(VENV)/bin/lint-imports"

format: $(VENV)/.dev ## rewrite the files as lint wants them
	"$(PY)" -m ruff check --fix .
	"$(PY)" -m ruff format .

env: $(VENV)/.dev ## only make the environment, with everything the other targets need

clean: ## remove caches and build outputs (not the environment, not runs/)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the environment too
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; echo "removed $(VENV)"; fi

# An environment keeps the interpreter that it was made with: asking for another one is not passed over in silence.
ifneq ($(strip $(PYTHON)),)
$(VENV)/.torch: | same-python
endif

same-python:
	@if [ -x "$(PY)" ]; then \
	    asked=$$(sh scripts/find_python.sh "$(PYTHON)") || exit 1; \
	    if [ "$$("$$asked" -c '$(WHICH_PYTHON)')" != "$$("$(PY)" -c '$(WHICH_PYTHON)')" ]; then \
	        echo "epan: $(VENV) was made with $$("$(PY)" -c '$(WHICH_PYTHON)'), not with PYTHON=$(PYTHON)." >&2; \
	        echo "Run 'make distclean' first to remove it, or name another environment beside it, such as VENV=.venv-2." >&2; \
	        exit 1; \
	    fi; \
	fi

# PyTorch comes first and alone, so that its version and its wheel index are a choice and not an accident.
# A later call keeps what is installed, unless it asks in so many words for another one.
ifneq ($(filter-out file,$(origin TORCH) $(origin TORCH_INDEX)),)
ifneq ($(strip $(shell cat "$(VENV)/.torch" 2>/dev/null)),$(strip $(TORCH) $(TORCH_INDEX)))
$(VENV)/.torch: FORCE
endif
endif

$(VENV)/.torch:
	@set -e; \
	if [ ! -x "$(PY)" ]; then \
	    python=$$(sh scripts/find_python.sh "$(PYTHON)"); \
	    echo "epan: making $(VENV) with $$python; PyTorch comes first (about 200 MB; several GB with CUDA on Linux)"; \
	    "$$python" -m venv "$(VENV)"; \
	fi; \
	"$(PY)" scripts/check_python.py; \
	if [ -f "$@" ]; then $(PIP) uninstall --yes --quiet torch; rm -f "$@"; fi; \
	$(PIP) install $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$(TORCH)"; \
	"$(PY)" -c '$(CONSTRAIN)' > "$(VENV)/torch-constraint.txt"; \
	echo "$(strip $(TORCH) $(TORCH_INDEX))" > "$@"

# The constraint file holds the second step to the PyTorch of the first.
$(VENV)/.lab: $(VENV)/.torch $(METADATA)
	@$(PIP) install -c "$(VENV)/torch-constraint.txt" -e '.[lab]'
	@touch "$@"

$(VENV)/.dev: $(VENV)/.torch $(METADATA)
	@$(PIP) install -c "$(VENV)/torch-constraint.txt" -e '.[lab,dev]'
	@touch "$@" "$(VENV)/.lab"
