"""A job before it is a row: its arg encoded, its names checked, its id made. Pure."""
