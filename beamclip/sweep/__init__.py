"""Sweeps: which settings are tried, how a trial runs, and what is reported."""
