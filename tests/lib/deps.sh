# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# need_packages PACKAGE...: installs the Debian packages among these that are missing, as root
# or through sudo. Touches neither the network nor the system if none is. Sourced by tests/run
# and examples/demo. Exits with a message that names the packages where it cannot help.

# What a build of everything needs. The tests add to it in stages.sh.
# shellcheck disable=SC2034
base_packages=(gcc libc6-dev meson ninja-build pkg-config python3 libsodium-dev libexpat1-dev zlib1g-dev
    libibverbs-dev librdmacm-dev libnuma-dev)

# What the lab of tests/rdma needs, and the programs that its tests use inside of it.
# shellcheck disable=SC2034
lab_packages=(qemu-system-x86 busybox-static cpio kmod iproute2 util-linux procps iputils-ping
    ibverbs-providers ibverbs-utils rdmacm-utils perftest)

need_packages() {
    local missing=() package root=()
    if ! command -v dpkg-query >/dev/null 2>&1; then
        echo "no Debian packages here: make sure that these, or what they stand for, are installed: $*" >&2
        return 0
    fi
    for package; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            echo "missing packages; as root: apt-get install ${missing[*]}" >&2
            exit 1
        fi
        root=(sudo)
        [ -z "${CI-}" ] || root+=(-n) # nobody is there to type a password
    fi
    echo "installing: ${missing[*]}" >&2
    if ! { "${root[@]}" apt-get -qq update &&
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get -qq install -y --no-install-recommends "${missing[@]}"; } </dev/null >&2; then
        echo "could not install ${missing[*]}: is there a network, and does apt-get update work?" >&2
        exit 1
    fi
}
