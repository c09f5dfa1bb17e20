"""Tasks and their rows: read, split, tokenised, batched."""
