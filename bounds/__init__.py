"""What the theorems say."""
