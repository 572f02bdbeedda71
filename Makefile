# Everything lives in .venv; a second start installs nothing.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all paper benchmark gallery replicate clean

demo: .venv/runs  ## the edge of stability, quick preset: progress, claims, figure
	.venv/bin/python -m experiments edge_of_stability

test: .venv/tests  ## lint, types, doctests and tests
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	.venv/bin/python -m pytest -n 2 --dist loadgroup --durations=25

test-all: .venv/tests  ## the same, and what is slow by nature; forms in PyTorch where it is installed
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	.venv/bin/python -m pytest -n 2 --dist loadgroup --durations=25 -m "slow or not slow"

paper: .venv/runs  ## the edge of stability as committed (three minutes on two cores)
	.venv/bin/python -m experiments edge_of_stability paper

benchmark: .venv/runs  ## the engine against jit(vmap(scan)), side by side
	.venv/bin/python -m tests.benchmark_sweep

gallery: .venv/runs  ## README's table of experiments, made anew from figures/
	.venv/bin/python -m experiments gallery

replicate: .venv/runs  ## every quick preset on seeds that no figure used
	.venv/bin/python -m experiments replicate

clean:
	rm -rf .venv .jax_cache runs

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/runs: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e .
	@touch $@

.venv/tests: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[test]'
	@touch .venv/runs $@
