"""Named quantities, patterns of their names, and tables of objects in notebooks."""
