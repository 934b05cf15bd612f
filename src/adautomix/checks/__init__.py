"""Check labels against pixels, and training loops for mistakes with mixing."""
