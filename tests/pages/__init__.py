"""The page of a task, the overview of apps, and the contact sheet."""
