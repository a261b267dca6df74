"""The receiver of MLflow's registry webhooks: a moved alias becomes a deployment."""
