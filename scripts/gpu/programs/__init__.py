"""What gpu-check runs as child processes: whatever touches a GPU, so that its end is one check's failure."""
