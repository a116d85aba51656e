# Every command does its own set-up; `make demo` and `make test` are all that a newcomer needs.
PYTHON ?= python3
BIN := .venv/bin
# More than half of a test's time is waiting: five share two cores. Those of a module share what it has set up; the longest come first (conftest.py).
WORKERS := $(shell n=$$(( $$(nproc) * 5 / 2 )); echo $$(( n < 5 ? n : 5 )))
PARALLEL := -n $(WORKERS) --dist loadscope --no-loadscope-reorder
# What a change of the rules of intake, of a reader or of the hub is tried on first: all within the test's own process.
FAST := $(addprefix tests/test_,$(addsuffix .py,advice angle beside_the_pixels config detail exchanged in_flight judging mixtures \
	no_projection queue reasons sidecars store tiff_tags transport))
# Threads of OpenBLAS and OpenMP wait by spinning, and take the time of the tests beside them.
test test-thorough test-fast test-long: export OPENBLAS_NUM_THREADS := 1
test test-thorough test-fast test-long: export OMP_NUM_THREADS := 1

.PHONY: help setup demo test test-thorough test-fast test-long check format bench gpu-bench clean durability

help:
	@echo "make demo    a simulated microscope, the daemon, a volume, a picture: demo/summary.png"
	@echo "make test    every promise once (about six minutes on two cores)"
	@echo "make test-thorough   kills at every place, damaged files, trainings, alignment (about four more)"
	@echo "make test-fast   without daemons, browsers, kills and training: about a minute"
	@echo "make check   format, lint, types, import layers"
	@echo "make bench   latency, throughput, memory, inference and reconstruction figures"

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: setup
	$(BIN)/python -m tests.demo demo

test: setup
	$(BIN)/python -m pytest -m "not slow and not thorough" $(PARALLEL)

test-thorough: setup
	$(BIN)/python -m pytest -m "thorough and not slow" $(PARALLEL)

test-fast: setup
	$(BIN)/python -m pytest -m "not slow and not thorough" -q $(PARALLEL) $(FAST)

test-long: setup
	$(BIN)/python -m pytest -m slow $(PARALLEL)

check: setup
	$(BIN)/ruff format --check aet_stream tests
	$(BIN)/ruff check aet_stream tests
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format aet_stream tests
	$(BIN)/ruff check --fix aet_stream tests

bench: setup
	$(BIN)/python -m tests.bench

gpu-bench: setup
	$(BIN)/python -m tests.gpu_bench

clean:
	rm -rf demo bench build *.egg-info

durability: setup
	$(BIN)/python -m tests.durability matrix kill power mutants campaign orphans soak fsync report
