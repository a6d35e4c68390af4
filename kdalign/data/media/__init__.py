"""Sounds and images as data: encoded until a batch needs them."""
