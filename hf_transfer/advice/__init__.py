"""What compares runs: which pretrained model to start from."""
