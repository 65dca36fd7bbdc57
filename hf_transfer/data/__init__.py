"""What comes in: a data set becomes checked splits, and splits become batches."""
