"""The scoring app: one ASGI app for the models of every workload."""
