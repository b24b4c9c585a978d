"""Side-by-side measurements: this project over HTTP, its alternatives, and the machine's floor.

    python -m benchmarks              (or `make bench`; `--quick` for one of 5 to 12 minutes)

Every row is the same work done by us and by others, in one run, each in a process of its own. Beside
them stands the floor: what the machine's own matrix products and memory allow, measured in the same run.
"""
