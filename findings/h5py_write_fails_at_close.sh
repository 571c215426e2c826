#!/usr/bin/env bash
# h5py 3.16.0: a file that cannot grow raises RuntimeError when it is closed, without the system's error number.
# Guess: the assignment that does not fit raises OSError with errno, as write() of a Python file does, so that
#   `except OSError` around it is enough.
# Behaviour: small datasets are buffered: the assignment succeeds, and close() raises RuntimeError ("Can't decrement id
#   ref count …"), whose errno is only in the text. A limit on the file's size (setrlimit, in this process only) stands
#   for the full disk.
# Seen: assignment ok; close: RuntimeError with errno = 27 in its text and no errno attribute
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile h5py==3.16.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import os
import resource
import signal

import h5py
import numpy as np

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing raises an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
file = h5py.File("small.h5", "w")
file["values"] = np.arange(5000, dtype="f8")
print("assignment ok")
try:
    file.close()
except Exception as error:
    print(type(error).__name__, str(error)[:160])
    assert type(error) is RuntimeError and not hasattr(error, "errno") and "errno = 27" in str(error)
    os._exit(0)  # the library cannot close the file, at exit neither
raise SystemExit("no error")
EOF
