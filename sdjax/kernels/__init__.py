"""Kernels for accelerators. Import one by name; `import sdjax` loads none of them."""
