"""A saved model at work."""
