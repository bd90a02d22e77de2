"""What takes the results of jobs: ids, values, stored files, a table."""
