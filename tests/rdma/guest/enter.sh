# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# enter HOST RAILS COMMAND...: sets the array `entered` to what runs COMMAND on a simulated host
# with its first RAILS rails. Sourced, as processes are slow to start here.
enter() {
    local host=$1 rails=$2 pid=
    shift 2
    read -r pid <"/run/lab/host/$host/pid"
    entered=(nsenter --target "$pid" --mount --uts --ipc --pid --wd="$PWD" --)
    # shellcheck disable=SC2016 # the inner shell expands it
    [ "$rails" -ge "$LAB_RAILS" ] ||
        entered+=(unshare --mount sh -c 'mount --bind "$1" /dev/infiniband && shift && exec "$@"' sh
            "/run/lab/host/$host/first$rails")
    entered+=("$@")
}
