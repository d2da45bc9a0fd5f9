"""What negatives cost in time and memory, beside DGL's uniform in the same run."""
