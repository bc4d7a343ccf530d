"""The commands of the command line, one file each. `sample` and `denoise` do without Lightning."""
