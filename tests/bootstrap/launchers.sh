#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Starts real MPI launchers, two jobs at once, so that the ids and ports they leave us are seen to work.
# usage: launchers.sh RANK-PROGRAM
prog=$1
n=0
failed=0
dir=$(mktemp -d) || exit 99
trap 'rm -rf "$dir"' EXIT
GRADSYNC_KEY=a-key-for-this-test-only
OMPI_ALLOW_RUN_AS_ROOT=1
OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export GRADSYNC_KEY OMPI_ALLOW_RUN_AS_ROOT OMPI_ALLOW_RUN_AS_ROOT_CONFIRM
# Whatever started this test is not what the ranks should see.
unset GRADSYNC_RANK GRADSYNC_SIZE GRADSYNC_ROOT GRADSYNC_JOB RANK WORLD_SIZE

# check NAME EXPECTED COMMAND...: two jobs of the command, side by side
check() {
    name=$1
    expected=$2
    shift 2
    n=$((n + 1))
    if ! command -v "$1" >/dev/null 2>&1; then
        echo "ok $n - $name # SKIP $1 is not installed"
        return
    fi
    # A folder each: two mpirun of one user that start at once fall over each other's session folder in /tmp.
    mkdir -p "$dir/1" "$dir/2"
    TMPDIR=$dir/1 "$@" >"$dir/a" 2>&1 &
    TMPDIR=$dir/2 "$@" >"$dir/b" 2>&1
    second=$?
    wait $!
    first=$?
    if [ $first = 0 ] && [ $second = 0 ] && grep -q "^$expected$" "$dir/a" && grep -q "^$expected$" "$dir/b"; then
        echo "ok $n - $name"
    else
        echo "not ok $n - $name"
        sed 's/^/# /' "$dir/a" "$dir/b"
        failed=1
    fi
}

check "MPICH, two jobs at once" "pmi 4 ranks met" mpiexec.hydra -n 4 "$prog"
check "MPICH, the program in a shell" "pmi 4 ranks met" mpiexec.hydra -n 4 sh -c "'$prog'; exit \$?"
check "Open MPI, two jobs at once" "openmpi 3 ranks met" mpirun.openmpi --oversubscribe -n 3 "$prog"
check "torchrun, two jobs at once" "torchrun 3 ranks met" torchrun --standalone --nproc-per-node 3 --no-python "$prog"
echo "1..$n"
exit $failed
