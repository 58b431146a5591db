# What .ci/run and .ci/nightly share: jobs that run side by side, and the summary at the end.  Sourced, from the project's root.
set -euo pipefail
export CI=true PIP_DISABLE_PIP_VERSION_CHECK=1
# Each job has two processes of pytest, and there are as many jobs at once as CPUs: what waits leaves its CPU to the others.
export WORKERS=${WORKERS:-2}
export PYTHON=${PYTHON:-python3}
exec </dev/null

logs=build/ci
rm -rf "$logs"
mkdir -p "$logs"
passed=() failed=() skipped=()

# Ctrl-C must reach the tests that are about it, but what runs in the background, this script perhaps included, starts
# with SIGINT ignored, and a shell cannot undo that.
interruptible() {
    "$PYTHON" -c 'import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])' "$@"
}

# start NAME COMMAND...: run the command in the background, as many at once as there are CPUs.
started=()
start() {
    local name=$1
    shift
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do
        wait -n || true
    done
    started+=("$name")
    printf '%5d s  %s\n' "$SECONDS" "$name begins"
    {
        local status=0 begun=$SECONDS
        printf '\n=== %s: %s\n' "$name" "$*"
        interruptible "$@" 2>&1 || status=$?
        printf '=== %s: %s in %d s\n' "$name" "$([ "$status" -eq 0 ] && echo passed || echo FAILED)" $((SECONDS - begun))
        echo "$status" >"$logs/$name.status"
    } >"$logs/$name.log" &
}

# Wait for all that was started, show what it said, and remember how it ended.
finish() {
    local name
    wait
    for name in ${started[@]+"${started[@]}"}; do
        cat "$logs/$name.log"
        if [ "$(cat "$logs/$name.status" 2>/dev/null)" = 0 ]; then
            passed+=("$name")
        else
            failed+=("$name")
        fi
    done
    started=()
}

# ended NAME: wait until this job has ended.  Whether it has passed.
ended() {
    while [ ! -e "$logs/$1.status" ] && [ -n "$(jobs -rp)" ]; do
        wait -n || true
    done
    [ "$(cat "$logs/$1.status" 2>/dev/null)" = 0 ]
}

# Without what has failed here no other step can begin.
give_up() {
    finish
    summary
    exit 1
}

# skip NAME REASON
skip() {
    printf '\n=== %s: skipped: %s\n' "$1" "$2"
    skipped+=("$1 ($2)")
}

# The interpreter of a version: pyenv's newest, or one in PATH that really is that version.  Prints nothing when there is none.
find_python() {
    local version=$1 candidate
    for candidate in $(compgen -G "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version.*/bin/python$version" | sort -Vr) \
        "$(command -v "python$version" || true)"; do
        if [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ]; then
            echo "$candidate"
            return
        fi
    done
}

# The programs of others that the tests talk to.  Where they cannot be installed, those tests skip and say so.
step_programs() {
    local packages="openssl curl socat netcat-openbsd ncat haproxy"
    if command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ]; then
        start programs sh -c "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages"
    else
        skip programs "not root, or no apt-get, to install $packages"
    fi
}

# What other steps find made, so that no two of them make it at once: the sdist, the environment and the wheel.
step_sdist() {
    start sdist make dist/source
    finish # the programs of others, too, before the first test begins
    ended sdist || give_up
}
step_environment() {
    start environment make everything
    ended environment || give_up
}
step_wheel() {
    start wheel make dist/made
    ended wheel || give_up
}

step_lint() { start lint make lint; }
step_types() { start types make types; }
step_docs() { start docs make docs; }
step_package() { start package make package; }
step_ring() { start ring make half-ring; }
step_sockets() { start sockets make test-trio; }

# run_steps DEFAULT ARGUMENT...: the steps that the arguments name, or else the default ones; then what came of them.
run_steps() {
    local all=$1 name
    shift
    for name in "${@:-$all}"; do
        for each in $name; do
            if ! declare -F "step_$each" >/dev/null; then
                echo "unknown step $each; there are: $all" >&2
                exit 2
            fi
        done
    done
    # shellcheck disable=SC2086 # the names are words
    if [ $# -gt 0 ]; then set -- sdist environment wheel "$@"; else set -- $all; fi
    for each in "$@"; do
        "step_$each"
    done
    finish
    summary
}

# What pytest said at the end of each of its runs in a step.
closing_lines() {
    grep -aoE '[0-9]+ (passed|failed|errors?|skipped|xfailed|deselected)[^=]* in [0-9.]+s' "$logs/$1.log" |
        paste -sd';' | sed 's/;/; /g' || true
}

summary() {
    local name
    printf '\n=== summary\n'
    for name in ${passed[@]+"${passed[@]}"}; do
        printf '  passed   %-18s %s\n' "$name" "$(closing_lines "$name")"
    done
    for name in ${skipped[@]+"${skipped[@]}"}; do
        printf '  skipped  %s\n' "$name"
    done
    for name in ${failed[@]+"${failed[@]}"}; do
        printf '  FAILED   %-18s %s\n' "$name" "$(closing_lines "$name")"
    done
    printf '%d passed, %d failed, %d skipped in %ds\n' ${#passed[@]} ${#failed[@]} ${#skipped[@]} "$SECONDS"
    [ ${#failed[@]} -eq 0 ]
}
