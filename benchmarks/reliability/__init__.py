"""What happens to outputs when processes are killed."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a fork of a process with OpenMP's threads waits for them for ever
