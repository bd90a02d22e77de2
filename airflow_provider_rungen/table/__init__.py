"""Tables: rows in, rows out."""
