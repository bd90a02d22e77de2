"""``make bench``: what the provider costs, beside what is usual and beside what is possible."""
