"""Results: run folder, its readers and the labels of figures, for terminal, report and model card."""
