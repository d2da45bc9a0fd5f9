"""How much hard negatives add, by how large the shared pool is beside the graph."""
