# shellcheck shell=bash disable=SC2153
# SPDX-License-Identifier: Apache-2.0
# The stages of tests/run. Each is a function that installs what it needs, prints its log,
# and writes one line per test (state, name, reason; tab-separated) to file descriptor 3.
# They run with "set -e" in the root of the source tree; ROOT and LOGS are set by tests/run.

# What the whole of it has use for; without these, parts are left out and tests skipped.
test_packages=("${base_packages[@]}" g++ binutils libjansson-dev libcairo2-dev libhwloc-dev mandoc procps python3-numpy)

result() { printf '%s\t%s\t%s\n' "$1" "$2" "${3-}" >&3; }

# Runs a program that prints TAP and records its tests: tap STAGE NAME COMMAND...
tap() {
    local stage=$1 name=$2 status=0 out
    shift 2
    out=$(mktemp)
    echo "+ $*"
    "$@" >"$out" || status=$?
    cat "$out"
    python3 tests/lib/meson_tests.py tap "$stage" "$name" "$status" <"$out" >&3
    rm -f "$out"
}

# Configures and builds build/NAME, one test: build NAME [meson setup arguments].
# A folder of an earlier run is used again if meson still accepts it.
build() {
    local name=$1 dir=build/$1
    shift
    if ! { [ -f "$dir/build.ninja" ] && meson setup --reconfigure "$dir" "$@"; }; then
        rm -rf "$dir"
        meson setup "$dir" "$@"
    fi
    if ninja -C "$dir"; then
        result pass "$name: build"
    else
        result fail "$name: build" "see build/test-logs/$name.log"
        return 1
    fi
}

# Runs suites of build/NAME: run_tests NAME MULTIPLIER SUITE... (-SUITE: all but it; none: all).
# MULTIPLIER stretches the time limits of tests in slow builds; $test_args goes to each test.
run_tests() {
    local name=$1 multiplier=$2 names
    shift 2
    mapfile -t names < <(python3 tests/lib/meson_tests.py select "build/$name" "$@")
    if [ ${#names[@]} -eq 0 ]; then
        result fail "$name" "no tests in these suites: $*"
        return 1
    fi
    rm -f "build/$name/meson-logs/testlog.json"
    "${wrap[@]}" meson test -C "build/$name" --no-rebuild --print-errorlogs \
        --timeout-multiplier "$multiplier" ${test_args:+--test-args="$test_args"} "${names[@]}" || true
    python3 tests/lib/meson_tests.py tally "build/$name" "$name" ${#names[@]} >&3
}
wrap=()

stage_quick() {
    need_packages "${base_packages[@]}"
    CC=gcc build quick -Dwerror=true
    run_tests quick 1 unit plan topo checkreduce conformance bootstrap rail regress fuzz -long
}

stage_lint() {
    local check
    need_packages git python3 clang-format-14 shellcheck mandoc
    for check in tally layers format shell man; do
        tap lint "$check" "tests/lint/$check"
    done
}

# Everything, and with all the cases that the other stages only sample.
stage_gcc() {
    need_packages "${test_packages[@]}" clang mpich openmpi-bin
    CC=gcc CXX=g++ build gcc -Dwerror=true
    GRADSYNC_TEST_FULL=1 run_tests gcc 2
}

stage_clang() {
    need_packages "${base_packages[@]}" clang libclang-rt-14-dev
    CC=clang build clang -Dwerror=true -Dfuzz=true
    run_tests clang 2 unit topo fuzz
}

stage_asan() {
    need_packages "${test_packages[@]}"
    CC=gcc build asan -Dwerror=true -Dbuildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false
    export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1:abort_on_error=0
    export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
    run_tests asan 5 -python -abi -long
}

stage_tsan() {
    need_packages "${base_packages[@]}" util-linux
    CC=gcc build tsan -Dwerror=true -Dbuildtype=debugoptimized -Db_sanitize=thread -Db_lundef=false
    export TSAN_OPTIONS=halt_on_error=0:second_deadlock_stack=1
    # The sanitizer's shadow memory does not fit every randomised address space.
    ! setarch -R true 2>/dev/null || wrap=(setarch -R)
    run_tests tsan 10 unit conformance fault bootstrap rail regress -long
}

stage_tidy() {
    need_packages "${base_packages[@]}" clang clang-tidy-14
    CC=clang build clang -Dwerror=true -Dfuzz=true
    tap tidy clang-tidy tests/lint/tidy build/clang
}

# Installs into a folder, then builds and runs the README's program against that alone.
stage_install() {
    local prefix=$ROOT/build/installed
    need_packages "${base_packages[@]}"
    CC=gcc build install --prefix "$prefix" --libdir lib
    rm -rf "$prefix"
    meson install -C build/install --no-rebuild
    export PKG_CONFIG_PATH=$prefix/lib/pkgconfig LD_LIBRARY_PATH=$prefix/lib
    tap install program tests/lib/installed "$prefix"
}

stage_python() {
    local venv=build/venv python=/usr/bin/python3 # the one that the packages are for
    [ -x "$python" ] || python=python3
    need_packages "${base_packages[@]}" python3-venv python3-pip python3-setuptools python3-wheel python3-numpy
    CC=gcc build gcc -Dwerror=true
    rm -rf "$venv" build/wheel
    "$python" -m venv --system-site-packages "$venv"
    # Built from a copy: setuptools writes into the folder that it builds from.
    cp -r bindings/python build/wheel
    if "$venv/bin/pip" install --no-index --no-deps --no-build-isolation build/wheel; then
        result pass "python: pip install"
    else
        result fail "python: pip install" "see build/test-logs/python.log"
        return 1
    fi
    GRADSYNC_LIBRARY=$ROOT/build/gcc/lib/libgradsync.so tap python package \
        "$venv/bin/python" tests/lib/python_package.py
}

# Arm without Arm: libraries of that architecture are unpacked into the build folder.
stage_aarch64() {
    local root=$ROOT/build/aarch64-root
    if [ "$(uname -m)" = aarch64 ]; then
        result skip aarch64 "this machine is one: the gcc stage has built and tested it"
        return 0
    fi
    need_packages "${base_packages[@]}" gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
    tests/cross/packages arm64 "$root" libsodium23 libsodium-dev libexpat1 libexpat1-dev zlib1g zlib1g-dev
    printf "[constants]\nroot = '%s'\n" "$root" >build/aarch64-root.txt
    build aarch64 -Dwerror=true --cross-file build/aarch64-root.txt --cross-file tests/cross/aarch64.txt
    run_tests aarch64 20 unit plan topo fuzz -long
    test_args=--quick run_tests aarch64 20 checkreduce
    CC=gcc build gcc -Dwerror=true
    tap aarch64 two_ranks tests/cross/two_ranks build/gcc/tools/gradsync-run build/aarch64 "$root"
}

# The library over verbs, on simulated hosts.
stage_rdma() {
    if [ "$(uname -m)" != x86_64 ]; then
        result skip rdma "the lab emulates x86_64 on x86_64 only; this machine is $(uname -m)"
        return 0
    fi
    # shellcheck disable=SC2154 # in deps.sh
    need_packages "${test_packages[@]}" "${lab_packages[@]}"
    CC=gcc build gcc -Dwerror=true
    tap rdma lab tests/rdma/run --build build/gcc
}
