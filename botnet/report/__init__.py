"""Where a trained model fails, as one HTML page."""
