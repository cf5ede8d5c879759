# SPDX-License-Identifier: Apache-2.0
"""python3 -m gradsync: which library this package uses."""
import gradsync

print("gradsync %s (Python), %s from %s" % (gradsync.__version__, gradsync.library_version(), gradsync.library_path))
