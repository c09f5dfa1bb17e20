"""What a unit of work reports, and who is told: histories, logs, event files, NNI, Weights & Biases, a terminal."""
