"""How good a model is: zero-shot and linear-probe scores, and the pictures that go with them."""
