"""``make bench``: measures what the provider costs, compared with the usual way and with the optimum."""
