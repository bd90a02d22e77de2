"""Creates, deletes and scales apps, and waits for them."""
