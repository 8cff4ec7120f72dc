"""Losses: tensors in, one scalar out. No I/O, no state, no options objects inside."""
