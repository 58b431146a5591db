# make demo    set everything up in .venv, start an echo server, show it at work, stop it
# make test    set everything up in .venv, build with warnings as errors, run the tests on the ring and on Trio's own backend
#
# PYTHON chooses the interpreter (make test PYTHON=python3.12); CONTRIBUTING.md explains the other targets.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGUMENTS ?=
# More for pip to install into the environment: make test WITH=trio==0.25.0
WITH ?=
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Trio's own test suite on the I/O manager, for the newest Trio and the oldest one supported (which wants the pytest of its day).
NEWEST := trio pytest
OLDEST := trio==0.25.0 pytest==8.3.5

bin := $(VENV)/bin
pip = $(bin)/python -m pip install --quiet --disable-pip-version-check
# Named by the interpreter and by what the build depends on, so that another PYTHON does not get the old environment.
identity := $(shell $(PYTHON) -c 'import sys; print(sys.executable, sys.version.split()[0])' 2>/dev/null) $(WITH)
c_sources := $(wildcard _ffi/*.[ch] _ffi/*.py _ffi/fastpath/*.[ch])
build_inputs := pyproject.toml setup.py $(c_sources)
packaged := $(build_inputs) MANIFEST.in README.md LICENSE $(shell find gain_trio -name '*.py' -o -name '*.pyi' -o -name py.typed 2>/dev/null)
packaged += $(wildcard CHANGELOG.md CONTRIBUTING.md Makefile docs/*.md docs/*.rst docs/*.py tools/*.py tests/*.py tests/support/*.py examples/*.py)

.PHONY: fuzz help demo test test-ring test-trio test-once test-features soak lint format types docs package package-pure sanitize test-in-tree
.PHONY: trio-suite trio-suite-newest trio-suite-oldest trio-suite-poll bench clean FORCE

help:
	@sed -n 's/^# make \(.*\)/make \1/p' Makefile
	@echo 'more: test-ring test-trio test-features soak fuzz lint format types docs package package-pure sanitize trio-suite bench clean'

# --- the environment ---

# Changes when the interpreter does, and only then.
$(VENV)/python: FORCE
	@$(PYTHON) -c '' 2>/dev/null || { echo "cannot set up gain_trio: there is no $(PYTHON)" >&2; \
		echo "  cure: apt install python3 python3-venv python3-dev, or make PYTHON=/path/to/python3.10-or-newer" >&2; exit 1; }
	@if [ "$$(cat $@ 2>/dev/null)" != '$(identity)' ]; then \
		$(PYTHON) tools/preflight.py; \
		rm -rf '$(VENV)'; \
		$(PYTHON) -m venv '$(VENV)'; \
		echo '$(identity)' > $@; \
	fi

FORCE:

# An editable install: the extensions are built beside the sources.  The objects go first, because setuptools does not
# notice that they were compiled with other flags.
define install
rm -rf build/temp.* build/lib.*
$(pip) --editable '.[test]' $(WITH)
touch $@
endef

$(VENV)/built: $(VENV)/python $(build_inputs)
	$(install)

$(VENV)/built-strict: export GAIN_TRIO_WERROR := 1
$(VENV)/built-strict: $(VENV)/python $(build_inputs)
	$(install)
	@touch $(VENV)/built

# pip builds again to add an extra to an editable install, but finds the objects made.
$(VENV)/lint: $(VENV)/built pyproject.toml
	$(pip) --editable '.[test,lint]' $(WITH)
	touch $@

# --- what to do with it ---

demo: $(VENV)/built
	@$(bin)/python examples/demo.py

# One suite, on both backends: on the ring with tasks resumed in place and by Trio's scheduler, and on Trio's own I/O manager.
test: test-ring test-trio

# Where there is no ring to be had its tests cannot run.  That is said, and is an error where GAIN_TRIO_REQUIRE_RING=1.
test-ring: $(VENV)/built-strict
	$(on_the_ring) $(bin)/python tools/run_tests.py $(PYTEST_ARGUMENTS); \
	GAIN_TRIO_RESUME_IN_PLACE=0 $(bin)/python tools/run_tests.py $(connected) $(PYTEST_ARGUMENTS)

# All of it on the ring, and over sockets what makes connections.
test-once: $(VENV)/built-strict
	$(on_the_ring) $(bin)/python tools/run_tests.py $(PYTEST_ARGUMENTS)
	GAIN_TRIO_BACKEND=trio $(bin)/python tools/run_tests.py $(connected) $(PYTEST_ARGUMENTS)

test-trio: $(VENV)/built-strict
	GAIN_TRIO_BACKEND=trio $(bin)/python tools/run_tests.py $(PYTEST_ARGUMENTS)

define on_the_ring
mkdir -p build; \
if ! $(bin)/gain-trio doctor > build/doctor.txt; then \
	echo 'skipped: the tests on the ring, because there is none here (make test-ring)'; cat build/doctor.txt; \
	exit $${GAIN_TRIO_REQUIRE_RING:-0}; \
fi; \
export GAIN_TRIO_BACKEND=io_uring;
endef

# The tests that a kernel feature makes a difference to, without each that a ring can do without, one by one, and without all.
features := no_sqarray registered_fd buffer_ring buffer_increment taskrun_flag submit_all cqe_skip cancel_any single_issuer
features += defer_taskrun multishot_accept multishot_receive
featured := ring io_manager fork_and_threads faults resume resume_cancellation resume_coroutines
featured += connection connection_data connection_ends connection_limits hangup large_data send_file one_way
featured += slow_loris listener server deadlines datagram
# What makes connections, in all ways, or looks at the inside of the compiled modules.
connected = $(sort $(featured:%=tests/test_%.py) $(wildcard tests/test_event_*.py tests/test_server*.py tests/test_unix*.py))
connected += $(addprefix tests/test_,datagram_server.py descriptors.py drain.py framing.py max_connections.py news.py over_sockets.py)
connected += $(addprefix tests/test_,protocols.py queues.py tls.py tls_protocol.py tls_server.py worker_channels.py wrapping.py)
test-features: $(addprefix test-without-,$(features) all)
test-without-%: $(VENV)/built-strict
	$(on_the_ring) GAIN_TRIO_UNWANTED=$* $(bin)/python tools/run_tests.py $(featured:%=tests/test_%.py) $(PYTEST_ARGUMENTS)

# A hundred thousand connections must leave no object, reference or descriptor behind.
soak: $(VENV)/built-strict
	GAIN_TRIO_SOAK=100000 $(bin)/python tools/run_tests.py tests/test_faults.py -k test_thousands_of_connections_leave_nothing_behind

# The parsers that read a stranger's bytes, a minute each; make fuzz FUZZ='--seconds 600 --keep http' for one of them for longer.
FUZZ ?= --seconds 60
fuzz: $(VENV)/built
	$(pip) --editable '.[test,fuzz]' $(WITH)
	$(bin)/python tests/fuzz/run.py $(FUZZ)

lint: $(VENV)/lint
	$(bin)/ruff check .
	$(bin)/ruff format --check .

format: $(VENV)/lint
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

types: $(VENV)/lint
	$(bin)/mypy gain_trio examples tools
	$(bin)/mypy benchmarks/*.py
	PATH="$(abspath $(bin)):$$PATH" PYTHONPATH='$(CURDIR)' pyright --verifytypes gain_trio --ignoreexternal
	PATH="$(abspath $(bin)):$$PATH" PYTHONPATH='$(CURDIR)' $(bin)/python tools/check_forgotten_awaits.py

$(VENV)/docs: $(VENV)/built pyproject.toml
	$(pip) --editable '.[test,docs]' $(WITH)
	touch $@

# The documentation, in build/docs.  A reference that leads nowhere, or a public name without an entry, is an error.
docs: $(VENV)/docs
	$(bin)/python -m sphinx -W --keep-going -q -b html docs build/docs

# The whole of what is published: the sdist, and the wheel built from it in an environment of its own.  Then the wheel is
# installed in a fresh environment outside the tree, where the demonstration must run on it.
package: dist/made
	scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(PYTHON) -m venv "$$scratch/venv"; \
	"$$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check dist/*.whl; \
	cp examples/demo.py "$$scratch"; cd "$$scratch"; venv/bin/python demo.py

# The same without the compiled modules, as they are missing on other systems: the wheel is pure, and passes the suite.
package-pure: dist/made
	$(call unpack,build/trees/pure)
	cd build/trees/pure; \
	$(PYTHON) -m venv .venv; \
	GAIN_TRIO_NO_EXTENSIONS=1 .venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w pure .; \
	ls pure/*-py3-none-any.whl; \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check "$$(ls pure/*.whl)[test]"; \
	GAIN_TRIO_BACKEND=trio .venv/bin/python tools/run_tests.py $(PYTEST_ARGUMENTS)

dist/made: $(packaged)
	@$(PYTHON) tools/preflight.py
	rm -rf dist .venv-package; mkdir -p build
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/python -m pip install --quiet --disable-pip-version-check build twine
	.venv-package/bin/python -m build --outdir dist . > build/package.log 2>&1 || { cat build/package.log >&2; exit 1; }
	.venv-package/bin/python -m twine check --strict dist/*.tar.gz dist/*.whl
	.venv-package/bin/python tools/check_package.py dist
	touch $@

# The tests on extensions built with AddressSanitizer and UndefinedBehaviorSanitizer, in a tree of their own.  Python is
# not built with them, so their runtime comes first by LD_PRELOAD; what Python itself leaks is not looked at; and
# objects come from malloc one by one, so that the sanitizer sees where each begins and ends.  What is freed stays in
# quarantine, 256 MB of it, so the tests that watch the process's memory run by themselves with a small one.  Of the tests
# those that drive the compiled modules in this process: other programs are not made for the sanitizer's runtime, which the
# preload would give them, too.
memory_tests := tests/test_connection_limits.py
sanitize: dist/made
	$(call unpack,build/trees/sanitize)
	GAIN_TRIO_SANITIZE=1 $(MAKE) --no-print-directory -C build/trees/sanitize PYTHON='$(PYTHON)' WITH='$(WITH)' .venv/built-strict
	cd build/trees/sanitize; \
	export LD_PRELOAD="$$($${CC:-cc} -print-file-name=libasan.so) $$($${CC:-cc} -print-file-name=libubsan.so)"; \
	export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1; \
	export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1; \
	export PYTHONMALLOC=malloc; \
	.venv/bin/python tools/run_tests.py --timeout=300 $(filter-out $(memory_tests) tests/test_server_signals.py,$(connected)) $(PYTEST_ARGUMENTS); \
	ASAN_OPTIONS=$$ASAN_OPTIONS:quarantine_size_mb=4:thread_local_quarantine_size_kb=64 \
		.venv/bin/python tools/run_tests.py --timeout=300 $(memory_tests)

# The tests with another Python, in a tree of their own: make test-in-tree PYTHON=python3.13
test-in-tree: dist/made
	$(call unpack,build/trees/$(notdir $(PYTHON)))
	$(MAKE) --no-print-directory -C build/trees/$(notdir $(PYTHON)) PYTHON='$(PYTHON)' WITH='$(WITH)' test-once

define unpack
rm -rf $(1); mkdir -p $(1); tar -xzf dist/*.tar.gz --strip-components=1 -C $(1)
endef

trio-suite: trio-suite-newest trio-suite-oldest trio-suite-poll

trio-suite-newest: dist/made
	$(call trio_suite,newest,$(NEWEST))

trio-suite-oldest: dist/made
	$(call trio_suite,oldest,$(OLDEST))

# The same where the kernel has no more than readiness to offer.
trio-suite-poll: export GAIN_TRIO_UNWANTED := all
trio-suite-poll: dist/made
	$(call trio_suite,poll,$(NEWEST))

# All of Trio's tests but for the one that lists the backends it knows.  A pytest.ini of its own keeps pytest from finding
# this project's, which lies above.
define trio_suite
rm -rf build/trio-$(1); mkdir -p build/trio-$(1)
$(PYTHON) -m venv build/trio-$(1)/venv
build/trio-$(1)/venv/bin/python -m pip install --quiet --disable-pip-version-check $(2) dist/*.whl
printf '[pytest]\nmarkers = redistributors_should_skip\n' > build/trio-$(1)/pytest.ini
cd build/trio-$(1); timeout 900 venv/bin/python -m pytest -q -c pytest.ini -p trio._tests.pytest_plugin \
	-p gain_trio.pytest_plugin --skip-optional-imports -k 'not test_io_manager_statistics' --pyargs trio
endef

bench: $(VENV)/built
	$(pip) --editable '.[test,benchmark]' $(WITH)
	$(bin)/python benchmarks/run.py

clean:
	rm -rf build dist .venv .venv-* *.egg-info gain_trio/_uring.c benchmarks/.build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find gain_trio -name '*.so' -delete
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
