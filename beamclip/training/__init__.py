"""Training: the methods, the one loop that runs them, and the Ray Train workers around it."""
