"""What every attempt of a task has: its parameters, numbers, links, kill guard and outcome."""
