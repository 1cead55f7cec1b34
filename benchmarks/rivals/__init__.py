"""What people run instead: short, honest programs, each as good as its kind usually is."""
