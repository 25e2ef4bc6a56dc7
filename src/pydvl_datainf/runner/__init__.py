"""Makes runs: influences of any number of samples, in a store that survives whatever stops it."""
