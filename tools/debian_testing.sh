#!/usr/bin/env bash
# Run the tests with Pythons that are newer than those of a stable Debian, in a root directory of Debian's testing suite.
#
#   tools/debian_testing.sh                   make test, with each of the Pythons
#   tools/debian_testing.sh test-fast 3.15    another target of the Makefile, and one Python
#   tools/debian_testing.sh --run COMMAND...  any command in the root directory
#
# debootstrap makes the root directory in build/debian-testing, or where DEBIAN_ROOT says; a later run finds it made.  It
# takes about 1.5 GB, and a few minutes when it is new.  The tests run on the sdist (make dist/made), unpacked there, with an
# environment of their own, on this machine's kernel, with the variables GAIN_TRIO_*, PYTEST_ARGUMENTS, WORKERS and WITH.
#
# The script has to be root: it changes the root directory, and mounts /proc, /sys and /dev there, in a mount namespace that
# ends with it.  Where debootstrap is missing it installs it.  Each step has a time limit.
set -euo pipefail
script=$(realpath "${BASH_SOURCE[0]}")
cd "$(dirname "$script")/.."

readonly pythons="3.14 3.15"
readonly archive=${DEBIAN_ARCHIVE:-http://deb.debian.org/debian}
root=$(realpath -m "${DEBIAN_ROOT:-build/debian-testing}")
# The compiler, and the programs of others that the tests talk to.
readonly packages="gcc make libc6-dev ca-certificates git procps openssl curl socat netcat-openbsd ncat haproxy"
# An archive that was copied on some day has a Release file whose validity has ended.
readonly apt="apt-get -q -y -o Acquire::Check-Valid-Until=false -o APT::Install-Recommends=false"

die() {
    echo "debian_testing.sh: $*" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || die "must be root, to change the root directory and to mount /proc in it"
if [ -z "${DEBIAN_TESTING_NAMESPACE:-}" ]; then
    DEBIAN_TESTING_NAMESPACE=1 exec unshare --mount --propagation private "$script" "$@"
fi

mount_kernel() {
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
}

# inside SECONDS COMMAND...: run it in the root directory, with an environment of its own.
inside() {
    local seconds=$1 name passed=()
    shift
    for name in ${!GAIN_TRIO_@} ${!http_@} ${!https_@} PYTEST_ARGUMENTS WORKERS WITH; do
        if [ -n "${!name:-}" ]; then
            passed+=("$name=${!name}")
        fi
    done
    timeout --kill-after=30 "$seconds" chroot "$root" env --ignore-environment HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 \
        PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin DEBIAN_FRONTEND=noninteractive \
        PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_ROOT_USER_ACTION=ignore ${passed[@]+"${passed[@]}"} "$@"
}

make_base() {
    if ! command -v debootstrap >/dev/null; then
        command -v apt-get >/dev/null || die "there is no debootstrap here, and no apt-get to install it by"
        timeout 300 apt-get install -q -y debootstrap || die "cannot install debootstrap; apt-get update may help"
    fi
    # One script makes all suites of today; a debootstrap that is older than a suite lacks its name.
    if [ ! -e /usr/share/debootstrap/scripts/testing ]; then
        ln -s sid /usr/share/debootstrap/scripts/testing
    fi
    timeout 900 debootstrap --variant=minbase testing "$root" "$archive" || die "debootstrap failed: see $root/debootstrap"
}

make_root() {
    local version wanted=$packages
    for version in $pythons; do
        wanted+=" python$version-venv python$version-dev"
    done
    if [ ! -e "$root/etc/debian_version" ] || [ -d "$root/debootstrap" ]; then
        make_base
    fi
    mount_kernel
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    if [ "$(cat "$root/installed" 2>/dev/null)" != "$wanted" ]; then
        inside 300 sh -c "$apt update"
        inside 900 sh -c "$apt install $wanted"
        echo "$wanted" >"$root/installed"
    fi
    # Where this machine trusts an authority that Debian does not (a company's proxy), the root trusts it, too.
    if [ -n "${SSL_CERT_FILE:-}" ]; then
        cp "$SSL_CERT_FILE" "$root/etc/ssl/certs/ca-certificates.crt"
    fi
}

# run_tests TARGET VERSION
run_tests() {
    local tree="/srv/python$2"
    rm -rf "${root:?}$tree"
    mkdir -p "$root$tree"
    tar -xzf dist/*.tar.gz --strip-components=1 -C "$root$tree"
    inside 3600 make --keep-going -C "$tree" PYTHON="python$2" "$1"
}

mkdir -p "$root"
exec 9>"$root.lock"
flock 9 # one run at a time
if [ "${1:-}" != --run ]; then
    make dist/made # before /proc and /sys are mounted below this folder: making an sdist looks through all of it
fi
make_root
if [ "${1:-}" = --run ]; then
    shift
    inside 7200 "$@"
    exit
fi
failed=()
for version in ${2:-$pythons}; do
    run_tests "${1:-test}" "$version" || failed+=("$version")
done
[ ${#failed[@]} -eq 0 ] || die "the tests failed with Python ${failed[*]}"
