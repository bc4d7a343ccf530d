"""The commands of the command line, one file each, and what they share. Those that do not train load no Lightning."""
