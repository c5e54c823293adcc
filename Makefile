# make demo: installs what is needed into .venv and searches on real MNIST digits.   make test: everything that must hold.
# make bench-models: searches of four other networks, and their best beside ONNX Runtime's own quantiser; CIFAR10_DIR=... for all.
# make docs: the documentation site, into site/.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test docs bench-models lint install constraints audit

demo: install
	$(BIN)/autocompress search experiments/mnist_vgg.py

test: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	# The zoo of models and what starts Ray nodes run beside the rest: two processes for two cores.
	(nice -n 19 $(BIN)/pytest tests/models; zoo=$$?; $(BIN)/pytest tests/drivers; exit $$((zoo + $$?))) \
		>$(VENV)/beside.log 2>&1 & beside=$$!; \
	$(BIN)/pytest --ignore tests/models --ignore tests/drivers; rest=$$?; \
	wait $$beside; beside=$$?; cat $(VENV)/beside.log; exit $$((rest + beside))

# The variable keeps a notice about MkDocs 2, which is not used here, out of what is printed.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# A second call goes on where the first was cut short, and prints what is known.
bench-models: install
	$(BIN)/python benchmarks/models.py --folder runs/models
	for run in vit text vgg16 mobilenetv2; do $(BIN)/python benchmarks/static.py runs/models/$$run; done

install: $(VENV)/installed

# torch goes first, by exact pin: asked for loosely by another package it brings gigabytes of CUDA.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

# Refreshes the pinned versions from what pyproject.toml allows today.
constraints:
	$(PYTHON) -m venv $(VENV)-fresh
	$(VENV)-fresh/bin/pip install --quiet torch==2.13.0
	$(VENV)-fresh/bin/pip install --quiet '.[demo,dev]'
	$(VENV)-fresh/bin/pip freeze --exclude autocompress --exclude pip --exclude setuptools | sed 's/+cpu$$//' > constraints.txt
	rm -rf $(VENV)-fresh

# Known vulnerabilities of the pinned versions. It asks the network, so it is no part of make test.
audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit==2.10.1
	$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip
