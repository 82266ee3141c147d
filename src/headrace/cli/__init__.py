"""The command line. `main.py` knows the names of the commands; a command's module is imported when it is called."""
