"""The noise that is already in the data: its level for every item, and how it is put there once."""
