PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: help setup demo test check stress bench audit clean

help:            ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 12

setup: .venv/.ready  ## make .venv with everything in it

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup      ## train on generated birds, evaluate, explain: pictures in demo/
	$(BIN)/vit demo --out demo --overwrite

test: setup      ## the test suite, in minutes
	$(BIN)/pytest -m 'not stress'

check: setup     ## ruff, types, import directions, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m 'not stress'

stress: setup    ## what takes longer: numbers of training runs, damaged images
	$(BIN)/pytest -m stress
	$(BIN)/python -m benchmarks.fuzz_reading --cases 30000
	$(BIN)/python -m benchmarks.kills

bench: setup     ## side by side with peers
	$(BIN)/python -m benchmarks.encoder
	$(BIN)/python -m benchmarks.saliency
	$(BIN)/python -m benchmarks.explain
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.checkpoints
	$(BIN)/python -m benchmarks.trained

audit: setup     ## known vulnerabilities of the exact versions that CI tests; asks PyPI
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install --quiet pip-audit
	.venv/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

clean:           ## remove what the commands above made
	rm -rf .venv demo runs maps
