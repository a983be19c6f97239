# Everything runs in .venv, which tools/setup.py makes on first use. Start with `make demo`.

# The Python that .venv is made with, when there is none yet; a torch that it has is used.
PYTHON ?= python3
# Where to look for torch besides the usual package index, such as the CPU wheel index named on pytorch.org.
TORCH_INDEX ?=
# More arguments for pytest (make test) or for the benchmark (make bench).
ARGS ?=
SCRIPT ?= benchmarks/speed/reference.py
# Minutes of make fuzz, and of the cycles of make soak.
MINUTES ?= 15

venv := .venv/bin/python
pytest = $(venv) -m pytest
heading = @printf '\n== %s ==\n'

# An environment that lends its torch lends its pytest plugins too, and with them their warnings.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD := 1
# Two workers where there are two cores; a file stays with one, which makes what its tests share only once.
workers := -p xdist.plugin -n auto --maxprocesses 2 --dist loadfile

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test soak sanitise cluster fuzz audit check format format-check lint types bench clean

help:
	@echo 'make demo     train the demo (about a minute on two CPU cores) and write its report'
	@echo 'make test     run the tests'
	@echo 'make check    everything that must hold: format, lint, types, tests'
	@echo 'make soak     run the tests that take minutes, then cycles of work for a while [MINUTES=15]'
	@echo 'make sanitise compile the kernels with sanitisers of addresses and of undefined behaviour, and run their tests'
	@echo 'make fuzz     feed every reader of files with changed inputs for a while [MINUTES=15]'
	@echo 'make audit    look for known advisories and list the licences of what is installed'
	@echo 'make cluster  run the tests that need Ray, in an environment of its own'
	@echo 'make format   put the code into the format that `make check` asks for'
	@echo 'make lint     look for mistakes with ruff'
	@echo 'make types    check the types with mypy'
	@echo 'make bench    run a benchmark in an environment of its own [SCRIPT=benchmarks/ROOM/NAME.py ARGS=…]'
	@echo 'make install  make .venv; every other target does so by itself'
	@echo 'make clean    remove environments, caches and built files; runs/ stays'
	@echo
	@echo 'PYTHON=python3.12 chooses the Python for a new .venv; a torch that it has is used, not replaced.'
	@echo 'TORCH_INDEX=URL adds a package index for torch, such as the CPU wheel index named on pytorch.org.'

install:
	@command -v "$(PYTHON)" >/dev/null || { echo 'There is no $(PYTHON) here: install Python 3.11 or newer.'; exit 1; }
	@$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL="$(TORCH_INDEX)") "$(PYTHON)" tools/setup.py .venv dev

demo: install
	@.venv/bin/firstlight train shapes.demo

test: install
	$(heading) Tests
	@$(pytest) $(workers) -m "not soak" $(ARGS)

# pytest ends with 5 where no test is marked.
soak: install
	@$(pytest) -m soak $(ARGS) || [ $$? -eq 5 ]
	$(heading) 'Cycles of work'
	@$(venv) -m benchmarks.endurance soak --minutes $(MINUTES) --record

# Python is not built with the sanitisers, so their library is loaded before it. It keeps memory for life: no leaks.
sanitise: install
	$(heading) 'Kernels with sanitisers'
	@library=$$(g++ -print-file-name=libasan.so) && [ -f "$$library" ] \
		|| { echo 'There is no g++ with its libasan.so here: install both.'; exit 1; } \
		&& CXX="$(CURDIR)/tools/sanitising-compiler" OMP_NUM_THREADS=1 LD_PRELOAD="$$library" \
		ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=32 UBSAN_OPTIONS=print_stacktrace=1 \
		$(pytest) tests/machine/test_kernels*.py tests/machine/test_sanitised.py $(ARGS)

# atheris guides the changes by coverage where it has a wheel for this Python; they are random elsewhere.
fuzz: install
	@$(venv) -m pip install --quiet -c constraints.txt atheris \
		|| echo 'There is no atheris for this Python: inputs are changed at random.'
	@$(venv) -m benchmarks.endurance fuzz --minutes $(MINUTES) --record

# In an environment of its own, which looks at the packages of .venv and adds none to it.
audit: install
	@[ -x .venv-audit/bin/pip-audit ] || { "$(PYTHON)" -m venv .venv-audit \
		&& .venv-audit/bin/pip install --quiet -c constraints.txt pip-audit pip-licenses; }
	$(heading) Licences
	@.venv-audit/bin/pip-licenses --python=$(venv) --format=markdown --order=license
	$(heading) Advisories
	@.venv-audit/bin/pip-audit --strict --skip-editable --path $$($(venv) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

cluster:
	@$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL="$(TORCH_INDEX)") "$(PYTHON)" tools/setup.py .venv-cluster dev,cluster
	$(heading) Cluster
	@.venv-cluster/bin/python -m pytest -m cluster $(ARGS)

check: format-check lint types test

format: install
	@$(venv) -m ruff check --quiet --select I --fix .
	@$(venv) -m ruff format .

format-check: install
	$(heading) Format
	@$(venv) -m ruff format --check --output-format concise .

lint: install
	$(heading) Lint
	@$(venv) -m ruff check .

types: install
	$(heading) Types
	@$(venv) -m mypy

bench: install
	@echo 'Benchmark scripts, for make bench SCRIPT=…:'
	@grep -l __main__ benchmarks/*/*.py | grep -v _worker | sed 's/^/  /'
	@$(venv) tools/setup.py .venv-bench bench
	$(heading) $(SCRIPT)
	@.venv-bench/bin/python -m $(subst /,.,$(SCRIPT:.py=)) $(ARGS)

clean:
	rm -rf .venv .venv-bench .venv-audit .venv-cluster findings .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
