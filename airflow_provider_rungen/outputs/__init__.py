"""The outputs of jobs: downloaded, and stored in a destination."""
