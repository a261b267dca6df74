"""Everything that learns. Knows nothing of where it runs."""
