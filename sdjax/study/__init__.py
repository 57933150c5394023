"""Studies: many runs in one process, over data sets, methods and seeds; their table and report."""
