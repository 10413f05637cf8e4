"""What each place of an image attends to, as one interactive HTML page."""
