"""Python processes that start with their libraries imported, as forks of a server that imported them."""
