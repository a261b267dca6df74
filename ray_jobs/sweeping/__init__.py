"""Sweeps: many configurations, most of them parked early, the best trained in full."""
