"""Thin subclasses of TRL's trainers: an epoch is a round. Import them from the package root."""
