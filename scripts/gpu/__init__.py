"""What needs a GPU, or is about one."""
