"""One report for a reader: JSON, CSV and a page that needs nothing else."""
