"""Check labels against pixels, and training loops for common mistakes with mixing."""
