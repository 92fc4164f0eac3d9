"""What an application registers: handlers, their options and their outcomes."""
