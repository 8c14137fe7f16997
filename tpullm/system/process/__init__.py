"""What a process of tpullm starts with and starts: environment variables, JAX's compilation cache, worker processes."""
