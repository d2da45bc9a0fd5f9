"""Soak: hours of training in minutes, with workers that are killed, and what is left of it."""
