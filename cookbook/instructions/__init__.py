"""Verifiable instructions: what a prompt may ask of a reply that a program can check.

The kinds are those of IFEval (Zhou et al. 2023, arXiv:2311.07911) and a few more. `length`, `content`,
`form`, `ends` and `case` have the checks, `task` problems with such instructions, `scores` the four figures
that IFEval reports, `ifeval` the benchmark's own file.
Knows nothing about models.
"""
