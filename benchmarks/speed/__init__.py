"""Speed benchmarks: each module times one part of the library against a baseline.

    make bench                           # all of them, and the tables of docs/performance.md
    python -m benchmarks.speed.nms       # one of them

Case and baseline are checked to give equal results, then timed in turn in one process.
"""
