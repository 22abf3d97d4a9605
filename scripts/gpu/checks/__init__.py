"""What every section of gpu-check stands on: results, cases, child processes, models and runs."""
