# Every target sets up what it needs: a virtual environment in .venv, and Chromium for the browser tests.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test slow load lint types bench peers catalogue clean chromium

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
APP := .venv/.app
DEV := .venv/.dev
PEERS := .venv-bench/.peers

# Before torch starts its threads: idle ones sleep instead of spinning.
export OMP_WAIT_POLICY := passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Nothing is looked up or reported behind one's back while testing.
OFFLINE := HF_HUB_OFFLINE=1 WANDB_MODE=disabled

help:  ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

run: $(APP)  ## serve the app (STREAMLIT_SERVER_PORT chooses the port, 8501 by default)
	$(PY) -m streamlit run app.py

test: $(DEV) chromium lint types  ## lint, types, and every test but the long ones
	$(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist worksteal

slow: $(DEV) chromium  ## the long tests
	$(OFFLINE) $(PY) -m pytest -q -m slow

load: $(DEV) chromium  ## many visitors at once
	$(OFFLINE) $(PY) -m pytest -q -m load

lint: $(DEV)  ## ruff
	$(PY) -m ruff check .

types: $(DEV)  ## mypy
	$(PY) -m mypy interp kernels

bench: $(DEV)  ## the measurements, one thread (after `make peers`, beside other libraries)
	$(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m pytest -q -s -m bench
	$(OFFLINE) OMP_NUM_THREADS=1 $(PY) -m tests.benchmarks.speed

peers: $(PEERS)  ## install the libraries that the benchmarks compare with, into .venv-bench

catalogue: $(APP)  ## write the catalogue of methods and the settings into README.md
	$(PY) -m interp.catalogue
	$(PY) -m interp.settings

clean:  ## remove the environments and caches
	rm -rf .venv .venv-bench .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

$(APP): requirements.txt | .venv/bin/python
	$(PY) -m pip install -q -r requirements.txt
	@touch $@

$(DEV): requirements-dev.txt $(APP)
	$(PY) -m pip install -q -r requirements-dev.txt
	@touch $@

$(PEERS): requirements-bench.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install -q -r requirements-bench.txt
	@touch $@

chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	  command -v apt-get >/dev/null && $$sudo apt-get update -qq && \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	} || { echo "The browser tests need Chromium: install it (Debian: apt-get install chromium) and try again."; exit 1; }
