"""What was paid for, kept in one place, and the one rule that decides what is done about a row."""
