#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""gradsync-run as a user runs it: test_run.py GRADSYNC_RUN. TAP."""
from __future__ import annotations

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), ".."))
import tap  # noqa: E402

RUN = os.path.abspath(sys.argv[1])
HANG_S = 120  # nothing here takes that long; what does hangs
NOISE = ("GRADSYNC_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(NOISE)}
# A rank that says that it is there (in one write: print() makes two), and then waits for a signal.
READY = "import os, signal; os.write(1, b'ready %d\\n' % os.getpid()); "
WAIT = READY + "\nwhile True: signal.pause()"


def run(*args, env=None, data=b"", **more):
    """gradsync-run to its end: (status, stdout, stderr)."""
    try:
        p = subprocess.run([RUN, *args], input=data, capture_output=True, timeout=HANG_S, env={**CLEAN, **(env or {})}, **more)
    except subprocess.TimeoutExpired:
        return None, b"", b"hung"
    return p.returncode, p.stdout, p.stderr.decode(errors="replace")


def python(text):
    return ["--", sys.executable, "-c", text]


def gone(pid):
    """Waits until a process is no more (a zombie is none)."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
                if f.read().rpartition(")")[2].split()[0] in "ZX":
                    return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


class Started:
    """A launcher that runs on; its ranks' pids once all have said "ready"."""

    def __init__(self, ranks, *args):
        self.p = subprocess.Popen(
            [RUN, "-n", str(ranks), *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=CLEAN
        )
        self.pids = []
        while len(self.pids) < ranks:
            line = self.p.stdout.readline().decode()
            if not line:
                break
            found = re.search(r"ready (\d+)", line)
            if found:
                self.pids.append(int(found.group(1)))

    def end(self):
        """(status, the rest of stdout, stderr)"""
        try:
            out, err = self.p.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            self.p.kill()
            return None, "", "hung"
        return self.p.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def test_options():
    status, out, _ = run("--help")
    tap.ok(status == 0 and out.startswith(b"Usage: gradsync-run"), "--help")
    status, out, _ = run("--version")
    tap.ok(status == 0 and re.match(rb"gradsync-run \d+\.\d+\.\d+ ", out), "--version")
    for args, says in (
        (["--rank-count", "2"], "unknown option '--rank-count'"),
        (["-x"], "unknown option '-x'"),
        (["-n"], "needs a value"),
        (["--keep-going=1", "-n", "1", "true"], "takes no value"),
        (["-n", "0", "true"], "-n '0' is wrong"),
        (["-n", "2x", "true"], "-n '2x' is wrong"),
        (["-n", "5000", "true"], "-n '5000' is wrong"),
        (["true"], "how many ranks"),
        (["-n", "2"], "which program"),
        (["-n", "2", "--output", "foo", "true"], "prefix, raw or separate"),
        (["-n", "2", "--stdin", "2", "true"], "no rank"),
        (["-n", "2", "--bind", "socket", "true"], "core or none"),
        (["-n", "2", "--grace", "-1", "true"], "seconds"),
        (["-n", "2", "--timeout", "0", "true"], "seconds"),
        (["-n", "2", "--output", "raw", "--output-dir", "x", "true"], "--output separate"),
    ):
        status, _, err = run(*args)
        tap.ok(status == 125 and says in err and "Try 'gradsync-run --help'" in err, f"refused: {' '.join(args)}", err)
    with open("/dev/full", "wb") as full:
        p = subprocess.run([RUN, "--help"], stdout=full, stderr=subprocess.PIPE, timeout=HANG_S, check=False)
    tap.ok(p.returncode == 125 and b"cannot write standard output" in p.stderr, "--help to a full disk fails")


def test_environment():
    dump = python("import json, os; print(json.dumps(dict(os.environ)))")
    status, out, err = run("-n", "3", "--output", "prefix", *dump, env={"MASTER_PORT": "1", "GRADSYNC_RANK": "7"})
    ranks = {int(a): json.loads(b) for a, b in re.findall(r"^\[(\d+)\] (.*)$", out.decode(), re.M)}
    tap.ok(status == 0 and sorted(ranks) == [0, 1, 2], "three ranks run", err)
    tap.ok(
        all(
            e[name] == value
            for r, e in ranks.items()
            for name, value in {
                "GRADSYNC_RANK": str(r), "GRADSYNC_SIZE": "3", "GRADSYNC_LOCAL_RANK": str(r), "GRADSYNC_LOCAL_SIZE": "3",
                "RANK": str(r), "WORLD_SIZE": "3", "LOCAL_RANK": str(r), "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1",
            }.items()
        ),
        "rank and size, for us and for others",
    )
    tap.ok(all(re.fullmatch(r"127\.0\.0\.1:\d+", e["GRADSYNC_ROOT"]) for e in ranks.values()), "GRADSYNC_ROOT")
    tap.ok(all(int(e["MASTER_PORT"]) > 1 for e in ranks.values()), "MASTER_PORT is a new one")
    for name in ("GRADSYNC_ROOT", "GRADSYNC_JOB", "GRADSYNC_KEY", "MASTER_PORT"):
        tap.ok(len({e[name] for e in ranks.values()}) == 1, f"{name} is the same on all ranks")
    tap.ok(re.fullmatch("[0-9a-f]{64}", ranks[0]["GRADSYNC_KEY"]), "a random key")
    again = json.loads(run("-n", "1", *dump)[1])
    tap.ok(
        again["GRADSYNC_KEY"] != ranks[0]["GRADSYNC_KEY"] and again["GRADSYNC_JOB"] != ranks[0]["GRADSYNC_JOB"],
        "key and job are new every time",
    )
    tap.ok(json.loads(run("-n", "1", *dump, env={"GRADSYNC_KEY": "mine"})[1])["GRADSYNC_KEY"] == "mine", "a key that is set stays")
    kept = json.loads(run("-n", "1", *dump, env={"GRADSYNC_KEY_FILE": "/k"})[1])
    tap.ok("GRADSYNC_KEY" not in kept and kept["GRADSYNC_KEY_FILE"] == "/k", "a key file that is set stays")


def by_rank(out):
    """stdout of --output prefix, without the prefixes, by rank."""
    ranks = {}
    for line in out.split(b"\n")[:-1]:
        found = re.match(rb"\[(\d+)\] ", line)
        if not found:
            return None
        ranks.setdefault(int(found.group(1)), []).append(line[found.end():])
    return ranks


def test_output():
    write = (
        "import os, sys\n"
        "r = os.environ['RANK'].encode()\n"
        "for i in range(400):\n"
        "    line = r * (i % 97) + b' %d\\n' % i\n"
        "    for k in range(0, len(line), 7): os.write(1, line[k:k + 7])\n"
    )
    status, out, err = run("-n", "4", *python(write))
    ranks = by_rank(out)
    good = ranks is not None and sorted(ranks) == [0, 1, 2, 3]
    tap.ok(
        status == 0 and good and all(ranks[r] == [b"%d" % r * (i % 97) + b" %d" % i for i in range(400)] for r in range(4)),
        "lines written in bits arrive whole and in order",
        err,
    )
    binary = "import os; os.write(1, bytes(range(256)) * 3); os.write(2, b'\\0\\xff no newline')"
    status, out, err = run("-n", "2", *python(binary))
    want = (bytes(range(256)) * 3).split(b"\n")
    tap.ok(status == 0 and by_rank(out) == {0: want, 1: want}, "binary output, and a last line without newline")
    p = subprocess.run([RUN, "-n", "2", *python(binary)], capture_output=True, timeout=HANG_S, env=CLEAN, check=False)
    tap.ok(by_rank(p.stderr) == {0: [b"\0\xff no newline"], 1: [b"\0\xff no newline"]}, "stderr has its prefixes, too")
    long = "import os, sys; sys.stdout.write(os.environ['RANK'] * 3000000 + '\\n')"
    status, out, _ = run("-n", "3", *python(long))
    tap.ok(status == 0 and by_rank(out) == {r: [b"%d" % r * 3000000] for r in range(3)}, "lines of 3 MB arrive whole")
    status, out, _ = run("-n", "2", "--output", "raw", *python("import os; os.write(1, b'x')"))
    tap.ok(status == 0 and out == b"xx", "raw output is as it is")
    tap.ok(run("-n", "1", *python("import os; os.write(1, b'x')"))[1] == b"x", "one rank: raw")
    with tempfile.TemporaryDirectory() as folder:
        text = "import os, sys; print('out', os.environ['RANK']); print('err', os.environ['RANK'], file=sys.stderr)"
        status, out, err = run("-n", "2", "--output", "separate", "--output-dir", folder + "/new", *python(text))
        files = {}
        for name in os.listdir(folder + "/new"):
            with open(f"{folder}/new/{name}", encoding="utf-8") as f:
                files[name] = f.read()
        tap.ok(
            status == 0 and out == b""
            and files == {"rank.0.out": "out 0\n", "rank.0.err": "err 0\n", "rank.1.out": "out 1\n", "rank.1.err": "err 1\n"},
            "separate files",
            err,
        )
        status, _, err = run("-n", "2", "--output-dir", folder + "/no/such", *python(text))
        tap.ok(status == 125 and "cannot make the output directory" in err, "an output directory that cannot be made")
    with open("/dev/full", "wb") as full:
        p = subprocess.run(
            [RUN, "-n", "2", *python("print('x')")], stdout=full, stderr=subprocess.PIPE, timeout=HANG_S, env=CLEAN, check=False
        )
    tap.ok(p.returncode == 125 and b"cannot write standard output" in p.stderr, "a full disk is an error", p.stderr.decode())
    endless = "import os\nwhile True: os.write(1, b'line\\n')"
    p = subprocess.Popen([RUN, "-n", "2", *python(endless)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=CLEAN)
    first = p.stdout.readline()
    p.stdout.close()
    err = p.stderr.read().decode()
    p.stderr.close()
    tap.ok(first in (b"[0] line\n", b"[1] line\n") and p.wait(HANG_S) != 0, "a reader that leaves ends the job")
    tap.ok("BrokenPipe" in err, "because the ranks' writes fail", err)


def test_stdin():
    read = python("import os, sys; print(os.environ['RANK'], repr(sys.stdin.read()))")
    for args, want in (
        ([], {0: [b"0 'in'"], 1: [b"1 ''"], 2: [b"2 ''"]}),
        (["--stdin", "2"], {0: [b"0 ''"], 1: [b"1 ''"], 2: [b"2 'in'"]}),
        (["--stdin", "none"], {0: [b"0 ''"], 1: [b"1 ''"], 2: [b"2 ''"]}),
    ):
        _, out, _ = run("-n", "3", *args, *read, data=b"in")
        tap.ok(by_rank(out) == want, f"standard input {' '.join(args) or 'goes to rank 0'}", out.decode())


def test_failures():
    status, _, err = run("-n", "3", "--", "sh", "-c", "test $RANK != 1 || exit 7")
    tap.ok(status == 7 and re.search(r"rank 1 \(pid \d+\) exited with status 7 after \d+\.\d s", err), "status of a failed rank", err)
    status, _, err = run("-n", "3", "--", "sh", "-c", "test $RANK != 2 || kill -KILL $$")
    tap.ok(status == 137 and re.search(r"rank 2 \(pid \d+\) was killed by SIGKILL after", err), "a killed rank", err)
    # The others end by themselves when one is lost, each with an error of its own.
    wait_for_file = "while ! test -e $F; do sleep 0.01; done; "
    with tempfile.TemporaryDirectory() as folder:
        text = f"if test $RANK = 1; then touch $F.1; exit 9; fi; {wait_for_file} exit 3"
        p = subprocess.Popen(
            [RUN, "-n", "3", "--", "sh", "-c", text], stderr=subprocess.PIPE, env={**CLEAN, "F": folder + "/f"}
        )
        line = p.stderr.readline().decode()
        with open(folder + "/f", "wb"):
            pass
        err = line + p.stderr.read().decode()
        p.stderr.close()
        status = p.wait(HANG_S)
    tap.ok("rank 1 (pid" in line and "status 9" in line, "the first failure is reported at once", err)
    tap.ok(status == 9 and "then 2 other ranks failed: 0 (status 3), 2 (status 3)" in err, "and the others' at the end", err)
    status, _, err = run("-n", "3", "--grace", "0", "--", "sh", "-c", "test $RANK != 0 || exit 5; exec sleep 1000")
    tap.ok(status == 5 and "2 ranks still running 0 s after the first failure: sending SIGTERM" in err, "--grace, then SIGTERM", err)
    with tempfile.TemporaryDirectory() as folder:
        stubborn = f"if test $RANK = 0; then {wait_for_file} exit 5; fi; trap '' TERM; touch $F; while :; do sleep 1000; done"
        status, _, err = run("-n", "2", "--grace", "0", "--", "sh", "-c", stubborn, env={"F": folder + "/f"})
    tap.ok(status == 5 and "sending SIGKILL" in err, "then SIGKILL", err)
    status, out, err = run("-n", "2", "--keep-going", "--", "sh", "-c", "test $RANK != 0 || exit 5; sleep 0.1; echo done")
    tap.ok(status == 5 and out == b"[1] done\n" and "status 5" in err, "--keep-going leaves the others alone", err)
    status, _, err = run("-n", "2", "--timeout", "0.2", "--", "sleep", "1000")
    tap.ok(status == 124 and "not finished after 0.2 s" in err and "rank" in err, "--timeout", err)
    # What a failed rank has started goes with it.
    with tempfile.TemporaryDirectory() as folder:
        text = f"sleep 1000 & echo ready $!; if test $RANK = 0; then touch $F; exec sleep 1000; fi; {wait_for_file} exit 4"
        status, out, err = run("-n", "2", "--grace", "0", "--", "sh", "-c", text, env={"F": folder + "/f"})
    pids = [int(x) for x in re.findall(rb"ready (\d+)", out)]
    tap.ok(status == 4 and len(pids) == 2 and all(gone(p) for p in pids), "children of ranks do not survive a failure", err)


def test_start():
    with tempfile.TemporaryDirectory() as folder:
        plain = folder + "/plain"
        with open(plain, "w", encoding="utf-8") as f:
            f.write("#!/no/such/interpreter\n")
        status, _, err = run("-n", "4", "--", "no-such-program-here")
        tap.ok(status == 127 and "no such program in PATH" in err and err.count("\n") == 1, "not in PATH: 127, said once", err)
        status, _, err = run("-n", "2", "--", folder + "/nothing")
        tap.ok(status == 127 and "No such file" in err, "no such file: 127", err)
        status, _, err = run("-n", "2", "--", plain)
        tap.ok(status == 126 and "Permission denied" in err, "not executable: 126", err)
        os.chmod(plain, stat.S_IRWXU)
        status, _, err = run("-n", "2", "--", plain)
        tap.ok(status == 127 and "interpreter" in err, "a missing interpreter is named as such", err)
    status, out, _ = run("-n", "2", "sh", "-c", "printf '%s\\n' $1", "x", "-n", "5")
    tap.ok(status == 0 and out == b"[0] -n\n[1] -n\n", "without --, too, the program's options are its own")
    usable = sorted(os.sched_getaffinity(0))
    text = "import os; print(*os.sched_getaffinity(0))"
    status, out, err = run("-n", str(len(usable)), "--bind", "core", "--output", "prefix", *python(text))
    tap.ok(
        status == 0 and by_rank(out) == {r: [b"%d" % c] for r, c in enumerate(usable)}, "--bind core", out.decode(), err
    )
    n = len(usable) + 1
    status, out, err = run("-n", str(n), "--bind", "core", *python(text))
    tap.ok(
        status == 0 and by_rank(out)[n - 1] == [b"%d" % usable[0]] and "bound to the same" in err,
        "--bind core with more ranks than CPUs warns",
        err,
    )
    status, out, _ = run("-n", "64", "--", "sh", "-c", "echo $RANK")
    tap.ok(status == 0 and by_rank(out) == {r: [b"%d" % r] for r in range(64)}, "64 ranks")
    p = subprocess.run(
        ["sh", "-c", f'exec "{RUN}" -n 2 -- sh -c "cat; echo hi" <&- 2>&-'], stdout=subprocess.PIPE, timeout=HANG_S, env=CLEAN, check=False
    )
    tap.ok(p.returncode == 0 and by_rank(p.stdout) == {0: [b"hi"], 1: [b"hi"]}, "closed stdin and stderr do no harm")


def test_signals():
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT):
        job = Started(2, *python("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); " + WAIT))
        job.p.send_signal(number)
        status, _, err = job.end()
        # Python turns SIGINT into an exception, and then dies of it.
        tap.ok(status == 128 + number and f"was killed by {number.name}" in err, f"{number.name} ends the ranks", err)
    text = READY + "\nsignal.sigwait([signal.SIGUSR1]); print('one', flush=True); signal.sigwait([signal.SIGUSR2]); print('two')"
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2])\n"
    job = Started(2, *python(block + text))
    job.p.send_signal(signal.SIGUSR1)
    job.p.send_signal(signal.SIGUSR2)
    status, out, err = job.end()
    tap.ok(status == 0 and sorted(out.split("\n")[:-1]) == ["[0] one", "[0] two", "[1] one", "[1] two"], "SIGUSR1 and SIGUSR2", out, err)
    job = Started(2, *python("import signal; signal.signal(signal.SIGINT, lambda *a: print('int', flush=True)); " + WAIT))
    job.p.send_signal(signal.SIGINT)
    seen = sorted(job.p.stdout.readline() for _ in range(2))
    job.p.send_signal(signal.SIGINT)
    status, _, err = job.end()
    tap.ok(seen == [b"[0] int\n", b"[1] int\n"], "the first SIGINT is the ranks' to handle")
    tap.ok(status == 130 and "killing" in err and all(gone(p) for p in job.pids), "the second one kills them", err)
    job = Started(2, *python(WAIT))
    job.p.send_signal(signal.SIGTSTP)
    deadline = time.monotonic() + HANG_S

    def state(pid):
        with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
            return f.read().rpartition(")")[2].split()[0]

    def all_in(letters):
        while time.monotonic() < deadline:
            if all(state(p) in letters for p in [*job.pids, job.p.pid]):
                return True
            time.sleep(0.01)
        return False

    # A process group without a parent in its session cannot be stopped by SIGTSTP: then this test has none.
    tap.ok(all_in("Tt"), "SIGTSTP stops ranks and launcher")
    job.p.send_signal(signal.SIGCONT)
    tap.ok(all_in("SR"), "SIGCONT lets them go on")
    job.p.send_signal(signal.SIGTERM)
    tap.ok(job.end()[0] == 143, "and they can be ended")
    for extra in ([], ["--output", "raw"]):
        job = Started(3, *extra, *python(WAIT))
        job.p.send_signal(signal.SIGKILL)
        job.p.wait()
        tap.ok(len(job.pids) == 3 and all(gone(p) for p in job.pids), f"no rank outlives a killed launcher {' '.join(extra)}")
        job.p.stdout.close()
        job.p.stderr.close()


def test_idle():
    def wakes(pid):
        with open(f"/proc/{pid}/status", encoding="utf-8") as f:
            return re.findall(r"voluntary_ctxt_switches:\s*(\d+)", f.read())

    job = Started(2, *python(WAIT))
    deadline = time.monotonic() + HANG_S
    still = False
    # Settled once it has gone to sleep after the last output; then nothing wakes it.
    while not still and time.monotonic() < deadline:
        before = wakes(job.p.pid)
        time.sleep(0.3)
        still = wakes(job.p.pid) == before
    tap.ok(still, "an idle launcher does not wake up")
    job.p.terminate()
    job.end()


def test_terminal():
    """stdin is a terminal: a rank can read it, and Ctrl-C reaches the ranks."""
    text = "import sys; print('got', sys.stdin.readline().strip(), flush=True)\n" + WAIT
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(RUN, [RUN, "-n", "2", *python(text)], CLEAN)
    os.write(fd, b"hello\n")
    seen = b""
    interrupted = False
    try:
        while True:
            more = os.read(fd, 4096)
            if not more:
                break
            seen += more
            if not interrupted and seen.count(b"ready") == 2:
                interrupted = True
                os.write(fd, b"\x03")
    except OSError:
        pass  # the terminal's end
    _, status = os.waitpid(pid, 0)
    os.close(fd)
    tap.ok(b"[0] got hello\r\n" in seen and b"[1] got \r\n" in seen, "rank 0 reads the terminal", seen.decode(errors="replace"))
    tap.ok(os.WIFEXITED(status) and os.WEXITSTATUS(status) == 130, "Ctrl-C ends the ranks", seen.decode(errors="replace"))


for test in (
    test_options, test_environment, test_output, test_stdin, test_failures, test_start, test_signals, test_idle, test_terminal,
):
    test()
sys.exit(tap.done())
