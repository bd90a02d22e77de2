"""What apps and jobs cost."""
