"""Losses, optimisers, metrics, and what is trained with them."""
