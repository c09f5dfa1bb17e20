"""What an NNI trial runs: parameters in, one phase call, metrics out."""
