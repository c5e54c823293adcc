"""Where results are kept: the record in the run folder, and MLflow."""
