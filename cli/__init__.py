"""The command line. Each module is one group of commands and imports what it needs when it runs."""
