"""Floor 6: what people meet first."""
