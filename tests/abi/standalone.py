# SPDX-License-Identifier: Apache-2.0
"""The public header compiles alone, without a warning, in C and C++, with every compiler here.

usage: standalone.py SOURCE
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import tap  # noqa: E402

CASES = (
    ("gcc", "c", ("c99", "c11", "c17")),
    ("clang", "c", ("c99", "c11", "c17")),
    ("g++", "c++", ("c++11", "c++17", "c++20")),
    ("clang++", "c++", ("c++11", "c++17", "c++20")),
)
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wshadow", "-Wundef"]

# Nothing before the header: it brings its own includes. The initialisers are
# macros, so only a use of them compiles them.
PROGRAM = """#include <gradsync/gradsync.h>
#include <gradsync/gradsync.h>
int main(void)
{
    gradsync_error_info error = GRADSYNC_ERROR_INFO_INIT;
    gradsync_config config = GRADSYNC_CONFIG_INIT;
    gradsync_mem_config mem = GRADSYNC_MEM_CONFIG_INIT;
    gradsync_comm_config comm = GRADSYNC_COMM_CONFIG_INIT;
    gradsync_coll_opts opts = GRADSYNC_COLL_OPTS_INIT;
    return !(error.size && config.size && mem.size && comm.size && opts.size);
}
"""


def main() -> int:
    source = sys.argv[1]
    for compiler, language, standards in CASES:
        for standard in standards:
            name = "%s -std=%s" % (compiler, standard)
            if shutil.which(compiler) is None:
                tap.skip(name, "%s is not installed" % compiler)
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "alone." + ("c" if language == "c" else "cc"))
                with open(path, "w", encoding="utf-8") as file:
                    file.write(PROGRAM)
                command = [compiler, "-std=" + standard, *WARNINGS, "-I", os.path.join(source, "include")]
                command += ["-fsyntax-only", path]
                run = subprocess.run(command, capture_output=True, text=True)
            tap.ok(run.returncode == 0, name, run.stderr)
    return tap.done()


if __name__ == "__main__":
    sys.exit(main())
