"""Recipes on top of the client: rollouts, advantages, one training loop, evaluation, reports.

Run from a checkout (`python -m cookbook.opd --help`); never installed. Imports the client and
numpy, never torch and never the server.
"""
