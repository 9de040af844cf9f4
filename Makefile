# Everything a person or a CI job does with this project. `make` alone lists it.

PYTHON ?= python3
UV_VERSION = 0.13.8

VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet
# Kept apart from .venv, which holds nothing but what the lock files name.
LOCK_VENV = .venv-lock
UV = $(LOCK_VENV)/bin/uv

# Kept apart too: the servers that the gateway is measured beside. BENCH holds options.
BENCH_VENV = .venv-bench
BENCH =

# The order in which a browser for the page tests is looked for.
BROWSERS = chromium-headless-shell chromium chromium-browser google-chrome
# $BROWSER is often a person's everyday browser, and only a Chromium is of use here.
find_browser = case "$$BROWSER" in (*[Cc]hrom*) command -v "$$BROWSER" && exit;; esac; \
	for name in $(BROWSERS); do command -v "$$name" && exit; done; exit 1

# The server for the tests of coherence, either of the two.
find_redis = for name in redis-server valkey-server; do command -v $$name && exit; done; exit 1

TESTS = BROWSER="$$($(find_browser))" $(BIN)/python -m pytest --numprocesses=2

.PHONY: help install run test lint format lock upgrade browser redis bench stream clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile

install: $(VENV)/.installed ## make .venv with the gateway in it, from requirements.lock

run: install ## start the demo on http://127.0.0.1:8080
	$(BIN)/ledger-gateway demo

# These two come last before the tests, so that a slip of style is told without waiting for them.
test: lint browser redis ## everything that a change must pass
	$(TESTS) --cov
	@# And all of them once more, without the fast path.
	TEST_FAST_PATH=false $(TESTS) --quiet

lint: $(VENV)/.installed-test ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install $(BENCH_VENV)/.installed ## measure it beside nginx, HAProxy, Envoy and FastAPI; BENCH="--help" says how
	$(BIN)/python -m bench $(BENCH)

stream: install ## measure the streaming of a long list
	$(BIN)/python bench/stream.py

# --no-build-isolation: the build backend is the locked and hashed one, not whatever is newest today.
$(VENV)/.installed: requirements.lock setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-test: requirements-test.lock $(VENV)/.installed
	$(PIP) install --require-hashes -r requirements-test.lock
	@touch $@

$(BENCH_VENV)/.installed: bench/requirements.txt | $(BIN)/python
	[ -x $(BENCH_VENV)/bin/python ] || "$(PYTHON)" -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check --quiet install -r bench/requirements.txt
	@touch $@

$(BIN)/python:
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "No '$(PYTHON)' found. Python 3.11 or newer is needed: make install PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1)." >&2; \
		echo "Name another one: make install PYTHON=python3.13" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' came without venv. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

browser: ## find a headless Chromium for the page tests, or install Debian's
	@( $(find_browser) ) || { command -v apt-get >/dev/null \
		&& { [ "$$(id -u)" = 0 ] || command -v sudo >/dev/null; } \
		&& as_root=$$([ "$$(id -u)" = 0 ] || echo sudo) \
		&& $$as_root apt-get update --quiet \
		&& $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends \
			chromium-headless-shell fonts-dejavu-core \
		&& ( $(find_browser) ); } || { \
		echo "The page tests need a headless Chromium, and none could be found or installed." >&2; \
		echo "Install Chromium or Google Chrome, or name one: make test BROWSER=/path/to/chrome" >&2; exit 1; }

redis: ## find a Redis or Valkey server for the tests, or install Debian's
	@( $(find_redis) ) || { command -v apt-get >/dev/null \
		&& { [ "$$(id -u)" = 0 ] || command -v sudo >/dev/null; } \
		&& as_root=$$([ "$$(id -u)" = 0 ] || echo sudo) \
		&& $$as_root apt-get update --quiet \
		&& $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends \
			redis-server \
		&& ( $(find_redis) ); } || { \
		echo "The tests of coherence need redis-server or valkey-server, and none could be found or installed." >&2; \
		echo "Install Redis or Valkey, so that one of the two is on PATH." >&2; exit 1; }

lock: ## write the lock files anew, keeping every version that still fits
	[ -x $(UV) ] || "$(PYTHON)" -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip --disable-pip-version-check --quiet install uv==$(UV_VERSION)
	@# The build backend is locked too; its line is the one in pyproject.toml.
	sed -n 's/^requires = \["\(.*\)"\]$$/\1/p' pyproject.toml \
		| $(UV) pip compile $(LOCK_FLAGS) setup.cfg --extra redis - \
			--output-file requirements.lock
	$(UV) pip compile $(LOCK_FLAGS) setup.cfg --extra redis --extra test --constraints requirements.lock \
		--output-file requirements-test.lock

upgrade: UPGRADE = --upgrade
upgrade: lock ## the same with the newest versions of everything

# One file for every platform and every Python from 3.11 on.
LOCK_FLAGS = --quiet --universal --python-version 3.11 --generate-hashes $(UPGRADE) \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

clean: ## remove everything that was made
	rm -rf $(VENV) $(LOCK_VENV) $(BENCH_VENV) build dist *.egg-info .coverage .coverage.* htmlcov \
		.mypy_cache .pytest_cache .ruff_cache .hypothesis
	find bench gateway schemas tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
