"""Python processes that begin with libraries imported already: forked from a server that imported them."""
