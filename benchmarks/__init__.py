"""What measures speed; results stand in RESULTS.md."""
