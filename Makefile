# make demo | test | lint | bench | clean. Each sets itself up in a fresh clone, and does nothing twice.
#
#   make test PYTHON=python3.12        creates the environment with another interpreter
#   make test VENV=/tmp/venv           keeps the environment elsewhere
#   make test NOVENV=1 PYTHON=python3  runs with that interpreter as it is and installs nothing
#   make test ARGS="tests/test_x.py"   hands ARGS to pytest; make bench NAME=x runs one benchmark

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
WORKERS ?= 2

ifeq ($(NOVENV)$(if $(VENV),,1),)
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
READY_BENCH := $(VENV)/.ready-bench
else
RUN := $(PYTHON)
endif
PIP := $(RUN) -m pip --disable-pip-version-check -qq install

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: $(READY)
	@mkdir -p runs && touch runs/.demo-started
	$(RUN) -m tasks.demo $(ARGS)
	@find runs -name '*.html' -newer runs/.demo-started -exec echo 'report: {}' \;

# One thread per worker: two workers that each take all cores are slower than one. A file's tests stay together: what
# they share is made once.
test: export OMP_NUM_THREADS = 1
test: export TOKENIZERS_PARALLELISM = false
test: export HF_HUB_OFFLINE = 1
test: $(READY)
	$(RUN) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# A benchmark is a module of benchmarks/ that can be run.
BENCHMARKS := $(patsubst benchmarks/%.py,%,$(filter-out benchmarks/results.py,\
	$(shell grep -ls '^if __name__ == "__main__"' benchmarks/*.py)))
NAME ?= $(BENCHMARKS)

bench: $(READY) $(READY_BENCH)
	@echo "benchmarks: $(or $(BENCHMARKS),none); running: $(or $(NAME),none)"
	@set -e; for name in $(NAME); do echo "== $$name"; $(RUN) -m benchmarks.$$name $(ARGS); done
	$(RUN) -m benchmarks.results

# Keeps the environment and runs/, which cost time to make.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# torch comes first and by this name alone, so that a local or CPU build of it is taken when there is one.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("discdiff needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)'
	$(PIP) -e '.[dev,demo]'
	@touch $@

$(VENV)/.ready-bench: $(VENV)/.ready
	$(PIP) -e '.[bench]'
	@touch $@
