"""From images to the numbers of a table: samples, features, distances, rows, on any number of processes."""
