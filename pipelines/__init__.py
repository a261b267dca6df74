"""What runs after what: pipelines, the local runner and the command line."""
