"""Files of images: one reader and writer for each format, and the registry that finds them by the ending."""
