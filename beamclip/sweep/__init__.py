"""Sweeps: which settings are tried, how a trial runs, and what is reported."""

from beamclip.callable_room import make_callable

make_callable(__name__)
