"""SageMaker as a target: training jobs in the account of the user."""
