"""What was paid for, in the user's own storage: keys, entries, and the store that reads and writes them."""
