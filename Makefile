# Every target sets up what it needs, in .venv.
PYTHON ?= python3
BIN := .venv/bin
# timm and the torchvision that it needs, for tests/with_timm alone: where torchvision is installed, transformers uses
# it for pictures, and beside a torch for CPUs that of PyPI cannot be imported.
TIMM := .venv/timm
# Of each of the two processes that run tests: one thread, unless OMP_NUM_THREADS says otherwise.
TEST_THREADS := $(or $(OMP_NUM_THREADS),1)
# Two threads, so that the figures and the shipped bytes repeat on a machine with more cores.
export OMP_NUM_THREADS ?= 2
INSTALL_CHROMIUM := (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium)

.PHONY: setup demo browser test test-slow test-all mutation-score test-faults check format bench bench-transfer bench-loop bench-text bench-frozen bench-strategies bench-pairs bench-space bench-memory bench-start bench-scale bench-gpu bench-ranking bench-auto backbones clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		(echo "Expected: Python 3.11 or newer. Do this: make PYTHON=path/to/python3.11" && exit 2)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(TIMM) timm torchvision
	@touch $@

demo: setup  ## The vision recipe on the embedded samples.
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $(OMP_NUM_THREADS) \
		recipes/vision.py --config recipes/configs/digits.yaml --overwrite_output_dir

browser: setup  ## Chromium, which tests use to look at the demo; by apt-get where there is none.
	@test -x /usr/bin/chromium || $(INSTALL_CHROMIUM) || \
		(echo "Expected: /usr/bin/chromium. Do this: apt-get install chromium, as root" && exit 2)

# Two tests at a time, in random order. The first lines name its seed, and PYTEST_FLAGS="-p randomly --randomly-seed=N"
# repeats it. screenshots/ keeps what the browser saw.
PYTEST := BROWSER_SCREENSHOTS=$(CURDIR)/screenshots $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_FLAGS)
# The tests with timm, which a run without it does not collect.
PYTEST_TIMM = PYTHONPATH=$(CURDIR)/tests/with_timm/start:$(CURDIR)/$(TIMM) $(PYTEST) tests/with_timm

test: setup  ## The tests for daily work: everything except what takes long.
	OMP_NUM_THREADS=$(TEST_THREADS) $(PYTEST) -m "not slow"
	OMP_NUM_THREADS=$(TEST_THREADS) $(PYTEST_TIMM) -m "not slow"

test-slow: setup  ## The tests that take long: two hosts, sharding, the browser, kills, the wheel.
	OMP_NUM_THREADS=$(TEST_THREADS) $(PYTEST) -m slow
	OMP_NUM_THREADS=$(TEST_THREADS) $(PYTEST_TIMM) -m slow

test-all: setup  ## All tests, and the lines of the package that none of them reaches.
	OMP_NUM_THREADS=$(TEST_THREADS) $(PYTEST_TIMM) --cov=hf_transfer --cov-report= --cov-fail-under=0
	OMP_NUM_THREADS=$(TEST_THREADS) $(PYTEST) --cov=hf_transfer --cov-append --cov-report=term

mutation-score: setup  ## How many small changes to checkpoints and checks of data the tests notice, of 200 drawn.
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutation_score

test-faults: setup  ## 200 runs, each killed twice in a phase that is drawn; half an hour.
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults

check: setup  ## Style and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: bench-transfer bench-loop bench-text bench-frozen bench-strategies bench-pairs bench-space bench-memory bench-start bench-scale  ## All measurements of docs/benchmarks.md that need no other data.

bench-transfer: setup
	$(BIN)/python -m benchmarks.transfer_or_scratch

bench-loop: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.loop_overhead

bench-gpu: setup  ## One GPU, under ten minutes: ViT-B, ResNet-50 and BERT-base shapes next to Trainer.
	$(BIN)/python -m benchmarks.gpu

bench-text: setup  ## Length grouping, and a BERT next to transformers.Trainer.
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.text_speed

bench-frozen: setup  ## Frozen layers computed once, next to Trainer, a loop by hand and scikit-learn.
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.frozen_store
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.large_store

bench-pairs: setup  ## Images with texts: what both are worth, what a missing one costs, and the store for both.
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.pairs

bench-strategies: setup  ## Every strategy on both samples.
	$(BIN)/python -m benchmarks.strategies

bench-space: setup  ## The demo next to a bare pipeline.
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.space_speed

bench-ranking: setup  ## Does a ranking name the model that is best after fine-tuning? DATA=FOLDER WEIGHTS=FOLDER
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ranking $(DATA) $(WEIGHTS)

bench-memory: setup  ## What it changes that malloc keeps freed memory: kernel time and peak memory.
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.freed_memory

bench-start: setup  ## How long it takes until a command answers.
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.start

bench-scale: setup  ## A million texts and a million small pictures: time to the first step, and memory.
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.million_rows --kind texts
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.million_rows --kind texts-parquet
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.million_rows --kind pictures

# DATA and WEIGHTS are the folders that benchmarks/auto.py describes.
bench-auto: setup  ## Is the strategy that --strategy auto chooses the right one? Hours; an interrupted one goes on.
	$(BIN)/python -m benchmarks.auto $(DATA) $(WEIGHTS)

backbones: setup  ## Train the sample backbones again and compare them with what is shipped.
	$(BIN)/python -m benchmarks.sample_backbones

clean:
	rm -rf .venv build dist screenshots *.egg-info .pytest_cache .mypy_cache .ruff_cache
