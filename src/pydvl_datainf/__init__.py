"""DataInf."""
