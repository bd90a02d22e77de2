"""What an attempt does with rows: it buys what is missing, waits, and stores what ends."""
