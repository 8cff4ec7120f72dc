"""The embedded corpus of captioned drawings, made on the spot, and the server that offers it."""
