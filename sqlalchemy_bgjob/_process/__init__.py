"""One or several worker processes of the command line: signals, logs, exits."""
