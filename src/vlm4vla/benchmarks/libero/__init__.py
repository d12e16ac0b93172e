"""LIBERO's five suites on its own simulator, which lives in a Python of its own."""
