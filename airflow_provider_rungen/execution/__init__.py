"""What one run of a task is made of."""
