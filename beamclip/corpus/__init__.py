"""The embedded corpus of captioned drawings, made on the spot, and a server that offers it over HTTP."""
