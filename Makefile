# `make demo` and `make test` set up what they need on a fresh Debian 12 machine with python3, git and make.
SHELL := /bin/bash
.DELETE_ON_ERROR:
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Tests wait for disks and starting programs more than for processors: three at a time keep two of them busy.
WORKERS ?= 3

.PHONY: demo test lint types arrows check bench soak proto system-packages libvirt-python lab lab-down clean

# From nothing to a failed-over VM. IMAGE=path uses your disk, KEEP=1 leaves it running, HYPERVISOR=libvirt takes a VM that
# boots on two libvirt hosts (needs root, installs QEMU and libvirt).
demo: $(STAMP) $(if $(IMAGE),system-packages) $(if $(HYPERVISOR),libvirt-python)
	@$(PYTHON) -m demo $(if $(HYPERVISOR),--hypervisor "$(HYPERVISOR)") $(if $(IMAGE),--image "$(IMAGE)") $(if $(KEEP),--keep)

test: $(STAMP) libvirt-python  ## The whole suite; tests that miss a system package are skipped with the reason
	$(PYTHON) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: lint types arrows  ## What CI runs before the tests

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	@deploy/module-sizes

types: $(STAMP)
	$(VENV)/bin/mypy

arrows: $(STAMP)
	$(VENV)/bin/lint-imports

soak: $(STAMP) system-packages  ## The simulator on 20 000 seeds, then every file call of the store failing in turn; hours
	$(PYTHON) -m tests.simulation 0 20000  # a seed that fails becomes a line of tests/simulation/corpus.txt
	TWINSITE_EVERY_CALL=1 $(PYTHON) -m pytest -n 2 tests/hyperv_host_agent/store/test_every_fault_of_the_store.py

bench: $(STAMP)  ## Every figure against its peer and the limit, one line each
	@deploy/system-packages bench
	@deploy/libvirt-python $(VENV)
	$(PYTHON) -m bench.run

lab: libvirt-python  ## Two libvirt hosts on this machine with a real guest, until `make lab-down`; needs root
	@$(PYTHON) -m deploy.lab up

lab-down: $(STAMP)  ## Every trace of `make lab` away
	@$(PYTHON) -m deploy.lab down

proto: $(STAMP)  ## After a change below proto/
	$(PYTHON) hatch_build.py

system-packages:
	@deploy/system-packages

libvirt-python: $(STAMP) system-packages
	@deploy/libvirt-python $(VENV)

# A venv without pip's parts is what a Debian without python3-venv makes: then the package is installed first.
$(STAMP): pyproject.toml hatch_build.py $(shell find proto -name '*.proto' 2>/dev/null)
	@deploy/python-venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable ".[all]" --group dev
	@touch $@

clean:
	rm -rf $(VENV) twinsite/api build .demo .pytest_cache .mypy_cache .ruff_cache
