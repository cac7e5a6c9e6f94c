# `make` or `make help` lists what there is. Each verb installs what it needs, once, into a virtual environment beside this file.

PYTHON ?= python3
VENV := .venv
REFERENCE := .venv-reference
TRITON := .venv-triton

# What each verb needs of pyproject.toml's extras. make demo stays small: one engine, no TensorFlow.
DEMO_EXTRAS := openvino,jobs
TEST_EXTRAS := openvino,tensorflow,jax,quantize,jobs,bench,dev
REFERENCE_EXTRAS := openvino,keras-cv,reference,dev

# Tests run in several processes, four at most: each may hold a gigabyte. A file's tests stay together, so that what they share is
# made once; files come in the order of their names, because those with the fewest tests, which would be last, take longest.
PYTEST = -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

APT_INSTALL = DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# The prompt of `make demo` reaches the shell as an environment variable, so that no quote in it can end the command.
export PROMPT

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-reference test-full lint fix up containers chromium postgresql environments bench bench-parts train constraints clean

help:  ## list the verbs
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: $(VENV)/.installed-demo  ## a picture of PROMPT="..." from three services and a gateway: writes triptych.png
	@$(VENV)/bin/triptych demo $${PROMPT:+-- "$$PROMPT"}

up: $(VENV)/.installed-demo  ## start the gateway and the three stages, with MODEL=sd-v1-5, say, and leave them running until Ctrl-C
	@$(VENV)/bin/triptych up

test: $(VENV)/.installed-test $(TRITON)/.installed chromium postgresql  ## all tests that need no torch
	$(VENV)/bin/python $(PYTEST)

test-reference: $(REFERENCE)/.installed  ## networks and samplers against diffusers, transformers and keras-cv
	$(REFERENCE)/bin/python $(PYTEST) tests/reference

test-full: $(REFERENCE)/.installed  ## networks, memory and services at Stable Diffusion's full size; an hour, 16 GB of memory, 20 GB of disk
	$(REFERENCE)/bin/python -m pytest tests/full
	$(REFERENCE)/bin/python -m tests.full.results

lint: $(VENV)/.installed-test  ## style, types, Dockerfiles and compose files; changes nothing
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/hadolint services/*/Dockerfile
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml compose.gpu.yaml

fix: $(VENV)/.installed-test  ## mend what a machine can mend: style, and the generated pages of docs/
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/python docs/generate.py

containers: $(VENV)/.installed-test  ## build the images, run compose.yaml for real and take it down; needs a container engine
	$(VENV)/bin/python deploy/containers/try.py

# A browser is the system's. Where it is not there and cannot be installed, make test goes on, and the tests that need it are skipped.
chromium:  ## install the browser that the page is tested in: Debian's package, as root
	@if ! command -v chromium-headless-shell > /dev/null && ! command -v chromium > /dev/null; then \
		if command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
			echo "Installing chromium-headless-shell"; \
			$(APT_INSTALL) chromium-headless-shell || { apt-get update -qq && $(APT_INSTALL) chromium-headless-shell; } \
				|| echo "chromium-headless-shell cannot be installed: tests of the page are skipped" >&2; \
		else \
			echo "There is no Chromium, and only root can install it: tests of the page are skipped" >&2; \
		fi; \
	fi

# A database is the system's too. The package's own cluster is left as it is: tests start one in a temporary folder. After chromium,
# because one of them waits for the other's lock otherwise.
postgresql: | chromium  ## install the database that jobs are tested on: Debian's package, as root
	@if [ -z "$$(ls -d /usr/lib/postgresql/*/bin/initdb 2> /dev/null)" ] && ! command -v initdb > /dev/null; then \
		if command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
			echo "Installing postgresql"; \
			$(APT_INSTALL) postgresql || { apt-get update -qq && $(APT_INSTALL) postgresql; } \
				|| echo "postgresql cannot be installed: tests of jobs on it are skipped" >&2; \
		else \
			echo "There is no PostgreSQL, and only root can install it: tests of jobs on it are skipped" >&2; \
		fi; \
	fi

environments: $(VENV)/.installed-test $(REFERENCE)/.installed $(TRITON)/.installed chromium postgresql  ## install what lint and the tests need; with -j side by side

bench: $(VENV)/.installed-test  ## should you split, and how? triptych bench, whose options go into BENCH="..."; a quarter of an hour
	$(VENV)/bin/triptych bench $(BENCH)

bench-parts: $(VENV)/.installed-test  ## measure the gateway, the step batcher and adherence each by itself; the results go to benchmarks/results
	$(VENV)/bin/python -m benchmarks.gateway
	$(VENV)/bin/python -m benchmarks.batching
	$(VENV)/bin/python -m benchmarks.adherence --keep

train: $(VENV)/.installed-test  ## go on training the embedded model; state lives in the cache folder, and it can be stopped at any time
	$(VENV)/bin/python -m training

constraints: $(VENV)/bin/pip  ## write constraints.txt anew, with the newest versions that fit together
	$(VENV)/bin/python -m pip install --dry-run --ignore-installed --quiet --report $(VENV)/report.json \
		'.[$(TEST_EXTRAS),$(REFERENCE_EXTRAS)]' 'tritonclient[http]' hatchling editables setuptools
	$(VENV)/bin/python .ci/constraints.py < $(VENV)/report.json > constraints.txt

clean:  ## remove the environments and everything else that git ignores
	rm -rf $(VENV) $(REFERENCE) $(TRITON) dist build triptych.png .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Environments. A stamp file says that an installation was finished; it is made again when what it depends on changes.
# What builds packages is installed first and used without isolation, so that it is under the constraints too: hatchling for our own,
# setuptools for promise, which keras-cv comes to need and which has no wheel.

define install
@echo "Installing into $(1): $(2)"
@$(1)/bin/python -m pip install --quiet --constraint constraints.txt hatchling editables setuptools
@$(1)/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[$(2)]'
@touch $@
endef

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(call install,$(VENV),$(DEMO_EXTRAS))

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(call install,$(VENV),$(TEST_EXTRAS))
	@touch $(VENV)/.installed-demo

$(REFERENCE)/.installed: pyproject.toml constraints.txt | $(REFERENCE)/bin/pip
	$(call install,$(REFERENCE),$(REFERENCE_EXTRAS))

# tritonclient judges our wire format from outside: nothing of ours is installed beside it.
$(TRITON)/.installed: constraints.txt | $(TRITON)/bin/pip
	@echo "Installing into $(TRITON): tritonclient"
	@$(TRITON)/bin/python -m pip install --quiet --constraint constraints.txt 'tritonclient[http]'
	@touch $@

%/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Triptych needs Python 3.11 or newer; name one with PYTHON=... (this is $$($(PYTHON) --version 2>&1))." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2> /dev/null \
		|| { echo "$(PYTHON) cannot make virtual environments: install Debian's package python3-venv." >&2; exit 1; }
	@$(PYTHON) -m venv $*
