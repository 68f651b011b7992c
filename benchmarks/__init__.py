"""Scripts that measure the project; README.md lists them."""
