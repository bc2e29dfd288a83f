"""Figures of fits, methods and emergence; each function returns a matplotlib Figure, `style.save` writes it."""
