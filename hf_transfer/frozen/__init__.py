"""What is computed once: stored activations, solved heads, nearest neighbours."""
