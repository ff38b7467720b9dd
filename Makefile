# Two commands on a fresh machine: make serve, make test. The rest is for those who work on Ekiben.
PYTHON ?= python3
PORT ?= $(or $(EKIBEN_PORT),3000)
SERVE := .venv/.installed
TORCH := .venv-torch/.installed
BENCH := .venv-bench/.installed
PROTOCOLS := .venv-protocols/.installed
KERAS := .venv-keras/.installed
PIP := -m pip --disable-pip-version-check install --quiet

SEED ?= 1
COUNT ?= 100000

.PHONY: protos help serve models keras bento test acceptance fuzz lint types imports coverage bench bench-sam bench-jobs bench-training bench-protocols clean

help:
	@echo "make serve        start Ekiben on http://127.0.0.1:$(PORT) (PORT= changes it)"
	@echo "make test         the tests; make acceptance: the slow ones"
	@echo "make fuzz         100,000 mutated requests to a started server (SEED=, COUNT= change it); about half an hour"
	@echo "make models       try again to get default models whose weights were missing"
	@echo "make keras        the environment that converts Keras and TensorFlow models"
	@echo "make bento        build a Bento that carries the models"
	@echo "make lint types imports coverage bench bench-sam bench-jobs bench-training bench-protocols clean"

serve: $(SERVE)
	@.venv/bin/python -m export.provision --torch .venv-torch/bin/python --make "$(MAKE) --no-print-directory $(TORCH)"
	@EKIBEN_PORT=$(PORT) exec .venv/bin/python -m services

models: $(SERVE)
	@.venv/bin/python -m export.provision --again --torch .venv-torch/bin/python --make "$(MAKE) --no-print-directory $(TORCH)"

keras: $(KERAS)

bento: $(SERVE)
	@.venv/bin/python -m bentoml build

# Two processes run the tests. With two threads of torch in each, threads that wait for each other spin: half of the time.
test: $(TORCH)
	@OMP_NUM_THREADS=1 .venv-torch/bin/python -m pytest tests -m "not acceptance" -n 2

coverage: $(TORCH)
	@OMP_NUM_THREADS=1 .venv-torch/bin/python -m pytest tests -m "not acceptance" -n 2 --cov --cov-report=term:skip-covered

acceptance: $(TORCH)
	@.venv-torch/bin/python -m pytest tests -m acceptance

fuzz: $(TORCH)
	@OMP_NUM_THREADS=1 .venv-torch/bin/python -m tests.fuzz --seed $(SEED) --count $(COUNT)

lint: $(TORCH)
	@.venv-torch/bin/ruff check . && .venv-torch/bin/ruff format --check .

# The messages of ekiben.v1, compiled; a test compares them with their source.
protos: $(TORCH)
	@.venv-torch/bin/python -m grpc_tools.protoc -I services/rpc --python_out=. --pyi_out=. --grpc_python_out=. ekiben/v1/ekiben.proto

types: $(TORCH)
	@.venv-torch/bin/mypy

imports: $(TORCH)
	@.venv-torch/bin/lint-imports --no-cache

bench: $(SERVE) $(TORCH) $(BENCH)
	@.venv-bench/bin/python -m bench

bench-sam: $(SERVE) $(TORCH) $(BENCH)
	@.venv-bench/bin/python -m bench.sam

bench-jobs: $(SERVE) $(TORCH)
	@.venv-torch/bin/python -m bench.jobs

bench-training: $(SERVE) $(TORCH)
	@.venv-torch/bin/python -m bench.training

bench-protocols: $(SERVE) $(TORCH) $(PROTOCOLS)
	@.venv/bin/python -m bench.protocols
	@.venv-protocols/bin/python -m bench.protocols.perf_analyzer
	@.venv-protocols/bin/python -m bench.loadgen

# The environments. The serving one has no torch; torch's own has everything, for exports and for the tests.
$(SERVE): pyproject.toml
	@echo "installing the serving environment into .venv (about a minute)"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python $(PIP) --editable .
	@touch $@

$(TORCH): pyproject.toml
	@echo "installing the export and test environment into .venv-torch (torch is large: some minutes)"
	@$(PYTHON) -m venv .venv-torch
	@.venv-torch/bin/python $(PIP) torch==2.13.0
	@.venv-torch/bin/python $(PIP) --editable '.[export,training,dev]'
	@touch $@

$(BENCH): bench/requirements.txt
	@echo "installing the peers of the benchmark into .venv-bench"
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python $(PIP) torch==2.13.0
	@.venv-bench/bin/python $(PIP) --requirement bench/requirements.txt
	@touch $@

$(PROTOCOLS): bench/protocol_requirements.txt
	@echo "installing the clients of the protocols into .venv-protocols"
	@$(PYTHON) -m venv .venv-protocols
	@.venv-protocols/bin/python $(PIP) --requirement bench/protocol_requirements.txt
	@touch $@

# tf_keras names tensorflow, which would be installed beside tensorflow-cpu.
$(KERAS): export/keras/requirements.txt
	@echo "installing TensorFlow and Keras into .venv-keras (some minutes)"
	@$(PYTHON) -m venv .venv-keras
	@.venv-keras/bin/python $(PIP) --requirement export/keras/requirements.txt
	@.venv-keras/bin/python $(PIP) --no-deps 'tf_keras>=2.21,<2.22'
	@touch $@

clean:
	rm -rf .venv .venv-torch .venv-bench .venv-protocols .venv-keras build *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage
