"""Rollouts: trees grown, rounds filled, and records in the formats of TRL."""
