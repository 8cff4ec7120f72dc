"""A cluster on AWS: what its nodes may do there, who may reach them, and what is missing before it starts."""
