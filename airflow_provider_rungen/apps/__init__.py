"""Creates, deletes, scales and awaits apps, and says what they cost."""
