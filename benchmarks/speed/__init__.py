"""How fast everything is: each module times one part, side by side with what it is measured against.

    make bench                                   # all of them, and the README's table
    python -m benchmarks.speed.suppression       # one of them

Results are asserted equal before they are timed. Every figure is the ratio of two times taken in turn in one process.
"""
