# make demo    set everything up in .venv, start an echo server, show it at work, stop it
# make test    set everything up in .venv, build with warnings as errors, run the tests on the ring and on Trio's own backend
# make check   what is worth running at every save: formats, linters, types, and the fast tests on the ring
#
# PYTHON chooses the interpreter (make test PYTHON=python3.12); CONTRIBUTING.md explains the other targets.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGUMENTS ?=
# How many processes pytest has; 0 for none beside itself, as a debugger wants it.  One more than there are CPUs, because a test
# that has started another process waits for it.  Of the halves of `make test` the one on the ring has nearly all such tests.
cpus := $(shell nproc)
ifeq ($(origin WORKERS),undefined)
WORKERS := $(shell echo $$(( $(cpus) + 1 )))
half-ring: export WORKERS := $(shell echo $$(( $(cpus) + 2 )))
half-trio: export WORKERS := $(cpus)
endif
# More for pip to install into the environment: make test WITH=trio==0.25.0
WITH ?=
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Trio's own test suite on the I/O manager, for the newest Trio, for the oldest one supported (which wants the pytest of its
# day), and for one between them: several functions of Trio that the acceleration has in C have a form there that neither
# the oldest nor the newest has.
NEWEST := trio pytest
MIDDLE := trio==0.30.0 pytest
OLDEST := trio==0.25.0 pytest==8.3.5

bin := $(VENV)/bin
pip = $(bin)/python -m pip install --quiet --disable-pip-version-check
# Without a cache: several runs may have the same tree.
pytest = -m pytest -p no:cacheprovider -n $(WORKERS) --dist worksteal $(if $(LEFT_OUT),-m 'not $(LEFT_OUT)') $(PYTEST_ARGUMENTS)
c_files = $(wildcard _ffi/*.[ch] _ffi/*/*.[ch] benchmarks/c/*.[ch])
# Hundreds of tests start a Python of their own, which shall not compile its modules anew.
unexport PYTHONDONTWRITEBYTECODE
# Named by the interpreter and by what the build depends on, so that another PYTHON does not get the old environment.
interpreter := $(shell $(PYTHON) -c 'import sys; print(sys.executable, sys.version.split()[0])' 2>/dev/null)
identity := $(interpreter) $(WITH)
c_sources := $(wildcard _ffi/*.[ch] _ffi/*.py _ffi/*/*.[ch])
build_inputs := pyproject.toml setup.py $(c_sources)
packaged := $(build_inputs) MANIFEST.in README.md LICENSE $(shell find gain_trio -name '*.py' -o -name '*.pyi' -o -name py.typed 2>/dev/null)
packaged += $(wildcard CHANGELOG.md CONTRIBUTING.md SECURITY.md Makefile docs/*.md docs/*.rst docs/*/*.rst docs/*.py docs/*.svg docs/_static/* benchmarks/*.py tools/*.py tests/*.py tests/support/*.py examples/*.py examples/deployment/*)

.PHONY: help demo check test half-ring half-trio half-trio-aside test-ring test-trio test-fast test-scheduled features test-features test-pairs test-sockets test-in-tree soak fuzz
.PHONY: lint format types lint-and-types docs pages analyse package package-pure sanitize everything
.PHONY: trio-suite trio-suite-newest trio-suite-middle trio-suite-oldest trio-suite-poll trio-suite-epoll trio-suite-pieces
.PHONY: other-suites bench clean FORCE

help:
	@sed -n 's/^# make \(.*\)/make \1/p' Makefile
	@echo 'more: lint format types docs pages test-ring test-trio test-scheduled test-pairs test-sockets test-features soak fuzz sanitize analyse'
	@echo '      package package-pure trio-suite bench clean'

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
# notice that they were compiled with other flags.  The compiler works beside pip, which takes longer to find and unpack all
# that the tests need.
extras := test
build_requires := $(shell sed -n 's/^requires = \[\(.*\)\]$$/\1/p' pyproject.toml | tr -d ,)
define install
rm -rf build/temp.* build/lib.*
$(pip) $(build_requires)
$(bin)/python setup.py --quiet build_ext --inplace & compiler=$$!; status=0; \
GAIN_TRIO_NO_EXTENSIONS=1 $(pip) --no-build-isolation --editable '.[$(extras)]' $(WITH) || status=$$?; \
wait $$compiler || status=$$?; exit $$status
endef

$(VENV)/built: $(VENV)/python $(build_inputs)
	$(install)
	touch $@

$(VENV)/built-strict: export GAIN_TRIO_WERROR := 1
$(VENV)/built-strict: $(VENV)/python $(build_inputs)
	$(install)
	touch $@ $(VENV)/built

# All of it in one installation, for a run of many targets.
everything: export GAIN_TRIO_WERROR := 1
everything: extras := test,lint,docs
everything: $(VENV)/python
	$(install)
	@cd $(VENV) && touch built built-strict lint docs

# pip builds again to add an extra to an editable install, but finds the objects made.
$(VENV)/lint: $(VENV)/built pyproject.toml
	$(pip) --editable '.[test,lint]' $(WITH)
	touch $@

# --- what to do with it ---

demo: $(VENV)/built
	@$(bin)/python examples/demo.py

# Linters and types beside the tests, which leave a CPU idle where they wait.  What linters and types say comes in one piece,
# when they are done.
check: $(VENV)/lint $(VENV)/compiled-tests
	@$(MAKE) --no-print-directory --keep-going --jobs=2 lint-and-types test-fast

lint-and-types: $(VENV)/lint
	@mkdir -p build; status=0; \
	$(MAKE) --no-print-directory --keep-going lint types >build/lint-and-types.log 2>&1 || status=$$?; \
	cat build/lint-and-types.log; exit $$status

# One suite, on both backends.  The halves run side by side, because one computes while the other waits; what is said over
# sockets comes at the end, in one piece.
test: $(VENV)/compiled-tests
	@mkdir -p build; status=0; \
	$(MAKE) --no-print-directory --keep-going --jobs=2 half-ring half-trio-aside || status=$$?; \
	cat build/half-trio.log; exit $$status

# pytest compiles the modules of tests with asserts of its own.  Two processes do it here, with half of the modules each: the
# workers of both halves begin at once, and each of them would compile all.
$(VENV)/compiled-tests: | $(VENV)/built-strict
	@printf '%s\n' tests/test_*.py | GAIN_TRIO_BACKEND=trio xargs -P 2 -n $$(( ($$(ls tests/test_*.py | wc -l) + 1) / 2 )) \
		$(bin)/python -m pytest -p no:cacheprovider -qq --collect-only > $(VENV)/collected.log || { cat $(VENV)/collected.log; exit 1; }
	@touch $@

# What no backend makes a difference to runs once: in the one half the tests that start no run, in the other those of what
# lies above the backends, unless there is no ring for them.
half-ring: $(VENV)/built-strict
	@$(MAKE) --no-print-directory test-ring LEFT_OUT=no_run

half-trio: $(VENV)/built-strict
	@$(MAKE) --no-print-directory test-trio LEFT_OUT="$$(if $(bin)/gain-trio doctor >/dev/null; then echo one_backend; fi)"

half-trio-aside: $(VENV)/built-strict
	@$(MAKE) --no-print-directory half-trio >build/half-trio.log 2>&1

# Where there is no ring to be had its tests cannot run.  That is said, and is an error where GAIN_TRIO_REQUIRE_RING=1.
test-ring: $(VENV)/built-strict
	$(on_the_ring) $(bin)/python $(pytest)

test-trio: $(VENV)/built-strict
	GAIN_TRIO_BACKEND=trio $(bin)/python $(pytest)

test-fast: $(VENV)/built-strict
	$(on_the_ring) $(bin)/python $(pytest) -q -m 'not slow'

# With every task that waits for a connection woken by Trio's scheduler and not in place; SCHEDULED chooses the tests.
SCHEDULED ?= features
test-scheduled: $(VENV)/built-strict
	$(on_the_ring) GAIN_TRIO_RESUME_IN_PLACE=0 $(bin)/python $(pytest) -m '$(SCHEDULED)'

define on_the_ring
if ! report=$$($(bin)/gain-trio doctor); then \
	echo 'skipped: the tests on the ring, because there is none here (make $@)'; echo "$$report"; \
	exit $${GAIN_TRIO_REQUIRE_RING:-0}; \
fi; \
export GAIN_TRIO_BACKEND=io_uring;
endef

# Kernel features that a ring can do without.  Connections stay on the ring without these nine:
optional := no_sqarray registered_fd buffer_increment taskrun_flag submit_all cqe_skip cancel_any no_iowait registered_files
# and go over sockets without any of these five.
needed := buffer_ring single_issuer defer_taskrun multishot_accept multishot_receive

features:
	@echo $(optional) $(needed) all

# The tests that a feature makes a difference to, without each, one by one, and without all.
test-features: $(addprefix test-without-,$(optional) $(needed) all)
test-without-%: $(VENV)/built-strict
	$(on_the_ring) GAIN_TRIO_UNWANTED=$* $(bin)/python $(pytest) -m features

# The nine in an array that has every two of them both used, both unused, and either without the other.  Its first row,
# with all of them in use, is test-ring; test_architecture.py holds that it is such an array.
pairs := 1 2 3 4 5
pair_1 := no_sqarray,registered_fd,buffer_increment,taskrun_flag,no_iowait
pair_2 := no_sqarray,registered_fd,submit_all,cqe_skip,registered_files
pair_3 := no_sqarray,buffer_increment,submit_all,cancel_any,no_iowait,registered_files
pair_4 := registered_fd,taskrun_flag,submit_all,cqe_skip,cancel_any,no_iowait
pair_5 := buffer_increment,taskrun_flag,cqe_skip,cancel_any,registered_files
test-pairs: $(pairs:%=test-pair-%) test-without-all
test-pair-%: $(VENV)/built-strict
	$(on_the_ring) GAIN_TRIO_UNWANTED=$(pair_$*) $(bin)/python $(pytest) -m features

# The five, with the tests of the ring and of the I/O manager themselves: what goes over sockets is tested by test-trio.
test-sockets: $(VENV)/built-strict
	$(on_the_ring) for feature in $(needed); do GAIN_TRIO_UNWANTED=$$feature $(bin)/python $(pytest) -m driver; done

# A hundred thousand connections must leave no object, reference or descriptor behind.
# And web apps for ten minutes under clients that abort, trickle and do not read, and replaced under load; on both backends.
SOAK_SECONDS ?= 600
soak: $(VENV)/built-strict
	GAIN_TRIO_SOAK=100000 $(bin)/python $(pytest) tests/test_faults.py -k test_thousands_of_connections_leave_nothing_behind
	for backend in io_uring trio; do \
		$(bin)/python tools/soak_asgi.py soak --seconds $(SOAK_SECONDS) --backend $$backend; \
		$(bin)/python tools/soak_asgi.py rolls --backend $$backend; \
		$(bin)/python tools/soak_asgi.py rolls --tls --requests 10000 --backend $$backend; \
		$(bin)/python tools/soak_asgi.py rolls --tls --requests 10000 --processes 0 --backend $$backend; \
	done

# The parsers that read a stranger's bytes, a minute each; make fuzz FUZZ='--seconds 600 --keep http' for one of them for longer.
FUZZ ?= --seconds 60
fuzz: $(VENV)/built
	$(pip) --editable '.[test,fuzz]' $(WITH)
	$(bin)/python tests/fuzz/run.py $(FUZZ)

# The C compiles without a warning, and is laid out as .clang-format has it; hadolint reads the image's recipe.
lint: $(VENV)/lint
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/clang-format --dry-run --Werror $(c_files)
	$(bin)/python tools/check_c.py
	$(bin)/hadolint examples/deployment/Dockerfile

format: $(VENV)/lint
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/clang-format -i $(c_files)

# gcc's analyser on the C of the library.
analyse: $(VENV)/built
	$(bin)/python tools/check_c.py --analyse

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

# The pages in a browser, wide and narrow; SCREENSHOTS=folder keeps pictures.  Needs chromium.
pages: docs
	$(bin)/python tools/check_pages.py $(if $(SCREENSHOTS),--screenshots $(SCREENSHOTS))

# The whole of what is published: the sdist, and the wheel built from it in an environment of its own.  Then the wheel is
# installed in a fresh environment outside the tree, where the demonstration must run on it.
package: dist/made
	scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(PYTHON) -m venv "$$scratch/venv"; \
	"$$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check dist/*.whl; \
	cp examples/demo.py "$$scratch"; cd "$$scratch"; venv/bin/python demo.py

# The same without the compiled modules, as they are missing on other systems: the wheel is pure, and passes the suite.
package-pure: dist/source
	$(call unpack,build/trees/pure)
	cd build/trees/pure; \
	$(PYTHON) -m venv .venv; \
	GAIN_TRIO_NO_EXTENSIONS=1 .venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w pure .; \
	ls pure/*-py3-none-any.whl; \
	.venv/bin/python -m pip install --quiet --disable-pip-version-check "$$(ls pure/*.whl)[test]"; \
	GAIN_TRIO_BACKEND=trio .venv/bin/python $(pytest)

# The sdist is the same whichever Python makes it, and is all that a tree of its own needs.
dist/source: $(packaged)
	@$(PYTHON) tools/preflight.py
	rm -rf dist; mkdir -p build
	$(packaging_environment)
	.venv-package/bin/python -m build --sdist --outdir dist . > build/sdist.log 2>&1 || { cat build/sdist.log >&2; exit 1; }
	touch $@

# Changes when the interpreter does: a wheel is for one.
dist/python: dist/source FORCE
	@if [ "$$(cat $@ 2>/dev/null)" != '$(interpreter)' ]; then echo '$(interpreter)' > $@; fi

dist/made: dist/python
	rm -f dist/*.whl
	$(packaging_environment)
	.venv-package/bin/python -m pip wheel --disable-pip-version-check --no-deps --wheel-dir dist dist/*.tar.gz \
		> build/wheel.log 2>&1 || { cat build/wheel.log >&2; exit 1; }
	.venv-package/bin/python -m twine check --strict dist/*.tar.gz dist/*.whl
	.venv-package/bin/python tools/check_package.py dist
	touch $@

define packaging_environment
if [ "$$(cat .venv-package/python 2>/dev/null)" != '$(interpreter)' ]; then \
	rm -rf .venv-package; \
	$(PYTHON) -m venv .venv-package; \
	.venv-package/bin/python -m pip install --quiet --disable-pip-version-check build twine; \
	echo '$(interpreter)' > .venv-package/python; \
fi
endef

# The tests on extensions built with AddressSanitizer and UndefinedBehaviorSanitizer, in a tree of their own.  Python is
# not built with them, so their runtime comes first by LD_PRELOAD; what Python itself leaks is not looked at; and
# objects come from malloc one by one, so that the sanitizer sees where each begins and ends.  What is freed stays in
# quarantine, 256 MB of it, so the tests that watch the process's memory run by themselves with a small one.
# Greenlets copy a stack as a whole, with the gaps that the sanitizer guards, so the tests with them are left out.
# SANITIZED chooses the tests by their markers: make sanitize SANITIZED='connections or not connections' has all others.
SANITIZED ?= connections and not slow
sanitized_pytest = $(pytest) --timeout=300 --ignore=tests/test_greenback.py
sanitize: dist/source
	$(call unpack,build/trees/sanitize)
	GAIN_TRIO_SANITIZE=1 $(MAKE) --no-print-directory -C build/trees/sanitize PYTHON='$(PYTHON)' WITH='$(WITH)' .venv/built-strict
	cd build/trees/sanitize; \
	export LD_PRELOAD="$$($${CC:-cc} -print-file-name=libasan.so) $$($${CC:-cc} -print-file-name=libubsan.so)"; \
	export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1; \
	export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1; \
	export PYTHONMALLOC=malloc; \
	.venv/bin/python $(sanitized_pytest) -m '($(SANITIZED)) and not memory'; \
	ASAN_OPTIONS=$$ASAN_OPTIONS:quarantine_size_mb=4:thread_local_quarantine_size_kb=64 \
		.venv/bin/python $(sanitized_pytest) -m memory

# The tests with another Python, in a tree of their own: make test-in-tree PYTHON=python3.13 SUITE=test-ring
SUITE ?= test
test-in-tree: dist/source
	$(call unpack,build/trees/$(notdir $(PYTHON)))
	$(MAKE) --no-print-directory -C build/trees/$(notdir $(PYTHON)) PYTHON='$(PYTHON)' WITH='$(WITH)' $(SUITE)

define unpack
rm -rf $(1); mkdir -p $(1); tar -xzf dist/*.tar.gz --strip-components=1 -C $(1)
endef

trio-suite: trio-suite-newest trio-suite-middle trio-suite-oldest trio-suite-poll trio-suite-epoll

trio-suite-newest: dist/made
	$(call trio_suite,newest,$(NEWEST))

trio-suite-middle: dist/made
	$(call trio_suite,middle,$(MIDDLE))

trio-suite-oldest: dist/made
	$(call trio_suite,oldest,$(OLDEST))

# The same where the kernel has no more than readiness to offer.
trio-suite-poll: export GAIN_TRIO_UNWANTED := all
trio-suite-poll: dist/made
	$(call trio_suite,poll,$(NEWEST))

# The same on Trio's own I/O manager, which the acceleration has pieces for, too.
trio-suite-epoll: export GAIN_TRIO_BACKEND := trio
trio-suite-epoll: dist/made
	$(call trio_suite,epoll-newest,$(NEWEST))
	$(call trio_suite,epoll-middle,$(MIDDLE))
	$(call trio_suite,epoll-oldest,$(OLDEST))

# All of Trio's tests but for the one that lists the backends it knows.  A pytest.ini of its own keeps pytest from finding
# this project's, which lies above.
define trio_suite
$(call trio_environment,$(1),$(2))
cd build/trio-$(1); $(trio_tests)
endef

# Each piece of the acceleration left out by itself, or those of PIECES, on Trio's own I/O manager, which has a piece, too.
PIECES ?= $$(build/trio-pieces/venv/bin/python -c 'from gain_trio._acceleration import NAMES; print(*NAMES)')
trio-suite-pieces: export GAIN_TRIO_BACKEND := trio
trio-suite-pieces: dist/made
	$(call trio_environment,pieces,$(NEWEST))
	failed=; for piece in $(PIECES); do \
		export GAIN_TRIO_ACCELERATE=$$(build/trio-pieces/venv/bin/python -c 'import sys; from gain_trio._acceleration import NAMES; \
			print(",".join(name for name in NAMES if name != sys.argv[1]))' $$piece); \
		echo "without $$piece:"; \
		(cd build/trio-pieces; $(trio_tests)) || failed="$$failed $$piece"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed without:$$failed" >&2; exit 1; fi

define trio_environment
rm -rf build/trio-$(1); mkdir -p build/trio-$(1)
$(PYTHON) -m venv build/trio-$(1)/venv
build/trio-$(1)/venv/bin/python -m pip install --quiet --disable-pip-version-check $(2) dist/*.whl
printf '[pytest]\nmarkers = redistributors_should_skip\n' > build/trio-$(1)/pytest.ini
endef

trio_tests = timeout 900 venv/bin/python -m pytest -q -c pytest.ini -p trio._tests.pytest_plugin \
	-p gain_trio.pytest_plugin --skip-optional-imports -k 'not test_io_manager_statistics' --pyargs trio

# The suites of libraries and servers that use Trio, with gain_trio below them and without; see tools/other_suites.py.
other-suites: $(VENV)/built
	$(bin)/python tools/other_suites.py $(SUITES)

bench: $(VENV)/built
	$(pip) --editable '.[test,benchmark]' $(WITH)
	$(bin)/python benchmarks/run.py

clean:
	rm -rf build dist .venv .venv-* *.egg-info gain_trio/_uring.c benchmarks/.build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find gain_trio -name '*.so' -delete
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
