"""What a run leaves on disk: its store, and how to read it without model, data or runner."""
