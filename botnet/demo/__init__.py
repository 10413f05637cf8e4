"""Small real data sets to try the project on."""
