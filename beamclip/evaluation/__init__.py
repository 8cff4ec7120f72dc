"""How good a model is: zero-shot, linear-probe and retrieval scores, and how well templates fit."""
