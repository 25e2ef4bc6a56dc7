"""What a run leaves on disk: read here, written by the runner."""
