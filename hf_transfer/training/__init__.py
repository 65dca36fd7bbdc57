"""How a model learns: the loop, learning rates, averages, checkpoints, devices."""
