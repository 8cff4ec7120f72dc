"""A sweep: what it tries, how a trial runs, what is reported."""
