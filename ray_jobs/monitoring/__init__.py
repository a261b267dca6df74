"""Live traffic: what is kept of it, and what it tells."""
