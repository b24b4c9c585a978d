"""Who else does the same work: one module each, with functions that take a job and return numbers by metric.

A module that needs packages of its own runs in an environment of its own (see `benchmarks.homes`).
"""
