"""Ray for one command: the workers it asks for, the Ray it starts or joins, the nodes of a cluster."""
