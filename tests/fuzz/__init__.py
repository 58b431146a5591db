"""Coverage-guided fuzzing of the parsers that read a stranger's bytes; ``make fuzz`` runs it."""
