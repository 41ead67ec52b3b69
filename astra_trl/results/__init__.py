"""Results: readers of runs and evaluations, labels of figures, and Markdown, for terminal, report and model card."""
