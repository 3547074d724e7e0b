"""Complete experiments, one readable file each."""
