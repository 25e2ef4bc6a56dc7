"""The damped inverse of a block as pure algebra: rows, vectors and damping in, vectors out."""
