"""What runs or compiles a graph; one backend per module, and none imports another."""
