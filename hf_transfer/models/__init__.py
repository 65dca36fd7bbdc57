"""What we start from: a pretrained backbone with a new head, and its groups in depth order."""
