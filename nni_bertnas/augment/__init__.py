"""New training rows."""
